"""Data-parallel LTKD: with a process group, b is that of the global batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ltkd.losses import DISTLoss, LTKDLoss

GROUPS = [0, 0, 1, 1, 1, 2]


def global_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, len(GROUPS), dtype=torch.float64, generator=generator) * 3
    # The second half hardly knows group 2: its mass would underflow as a bare sum in float32.
    teacher[4:, 5] -= 2000
    return student, teacher


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    student, teacher = (x[rank * 4 : rank * 4 + 4].clone() for x in global_batch())
    student.requires_grad_()
    shared = LTKDLoss(GROUPS, process_group=dist.group.WORLD)(student, teacher)
    shared.backward()
    local = LTKDLoss(GROUPS)(student, teacher)  # no collective without a process group
    torch.save((shared.detach(), local.detach(), student.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("other", [True, "gloo", 0, dist.GroupMember.NON_GROUP_MEMBER])
def test_what_is_no_process_group_is_refused(other) -> None:
    for make in (DISTLoss, lambda **given: LTKDLoss(GROUPS, **given)):
        with pytest.raises(ValueError, match=f"process_group is {other!r}; it must be a torch.dis"):
            make(process_group=other)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_equal_one_with_both_batches(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    student, teacher = global_batch()
    student.requires_grad_()
    expected = LTKDLoss(GROUPS)(student, teacher)
    expected.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    shared = torch.stack([p[0] for p in parts]).mean()
    local = torch.stack([p[1] for p in parts]).mean()
    gradient = torch.cat([p[2] for p in parts]) / 2
    torch.testing.assert_close(shared, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-10, atol=1e-12)
    assert abs(local - expected) > 1e-2, "the local b differs, or this test shows nothing"
