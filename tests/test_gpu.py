"""What only a GPU can show: equal bits, a recorded step, exact resume, memory that ends."""

import pytest
import torch
from test_train import run_in_pieces, same

from ltkd import pool, run, train
from ltkd.runs import Store, identity

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

METHODS = ["student", "kd", "ltkd", "dkd", "dist", "catkd", "reviewkd", "kd_adjusted"]


def spec_of(tiny, method, **changes):
    teacher = {} if method == "student" else {"teacher": "resnet8"}
    groups = {"groups": 3} if method == "ltkd" else {}
    source = {"teacher_source": "live"} if method == "reviewkd" else {}
    return tiny(method=method, **(teacher | groups | source | {"precision": "bf16"} | changes))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_spec_gives_the_same_bits_twice(tmp_path, tiny, method):
    spec = spec_of(tiny, method)
    same(*(run(spec, outputs=tmp_path / name, device="cuda") for name in ("once", "twice")))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["student", "ltkd", "reviewkd"])
def test_a_recorded_step_gives_the_bits_of_the_step(tmp_path, tiny, method, precision, monkeypatch):
    spec = spec_of(tiny, method, precision=precision, clip_norm=5.0)
    recorded = run(spec, outputs=tmp_path / "recorded", device="cuda")
    monkeypatch.setattr(train, "WARM_UP", 10**9)
    same(recorded, run(spec, outputs=tmp_path / "not", device="cuda"))


def test_a_run_cut_anywhere_is_the_same_to_the_bit(tmp_path, tiny):
    spec = spec_of(tiny, "ltkd")
    whole = run(spec, outputs=tmp_path / "whole", device="cuda")
    pieces, cuts = run_in_pieces(spec, 9, outputs=tmp_path / "pieces", device="cuda")
    assert cuts >= 2
    same(whole, pieces)


def test_a_gpu_and_a_processor_begin_alike(tmp_path, tiny):
    """One step, fp32: the loss differs by rounding alone (sums in another order)."""
    spec = spec_of(tiny, "student", precision="fp32", epochs=1, batch=330)
    loss = [run(spec, outputs=tmp_path / device, device=device).values["history"][0]["loss"]
            for device in ("cuda", "cpu")]  # fmt: skip
    assert abs(loss[0] - loss[1]) < 1e-3 * loss[1]


def test_out_of_memory_fails_one_run_and_the_others_go_on(tmp_path, tiny):
    """All but 1.5 GB are taken: a process and a small run fit into that, a large batch does not."""
    large = tiny(student="resnet32x4", batch=1000, gamma=1.0, epochs=1)
    small = tiny(epochs=1, seed=1)
    torch.cuda.empty_cache()
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 3 * 2**29, dtype=torch.uint8, device="cuda")
    out = pool.make([large, small], Store(tmp_path), device="cuda", jobs=1, quiet=True)
    del taken
    assert list(out.records) == [identity(small)], out.failed
    assert (
        f"out of memory; fewer --jobs, or a smaller batch in the file (now {large.batch})"
        in (out.failed[identity(large)])
    )
