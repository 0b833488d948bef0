"""One run in several processes, as torchrun starts them: each takes its share of every batch.

Gradients are averaged before they are clipped and used, so that every process takes the step of the
global batch: plain all-reduce, as the losses look inside the network, past DDP's wrapper. What
differs from one process is batch norm: it normalises with the statistics of a process's share, and
the running statistics of the first process are the ones that are evaluated and kept. The networks
have some millions of parameters, each process holds them all; sharding them (FSDP) gains nothing.

In a single process, and with no process group, everything here does nothing.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def join(device: torch.device) -> None:
    """Meet the other processes; on GPUs each takes its own. No wait for another run is too long."""
    backend = "gloo"
    if device.type == "cuda":
        own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= there:
            raise ValueError(f"--nproc-per-node: more processes than GPUs, of which there are "
                             f"{there}; allowed: a process a GPU, or --device cpu")  # fmt: skip
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(days=30))


def leave() -> None:
    """End together: torchrun kills the others as soon as one has failed."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def share(index: Tensor) -> Tensor:
    """This process's part of a batch."""
    return index[rank() :: world()]


def average(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over the processes: one message for all of them."""
    if world() > 1:
        whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(whole)
        whole /= world()
        for tensor, part in zip(tensors, whole.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; by way of the CPU, so that no GPU is waited for."""
    if world() == 1:
        return flag
    told = torch.tensor(int(flag))
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def in_turn(act: Callable[[], Result]) -> Result:
    """What ``act`` gives here: done by the first process, then by the others, which find what it
    left on the disk. Where the first raises, all raise the same."""
    if world() == 1:
        return act()
    error: list[Exception | None] = [None]
    if rank() == 0:
        try:
            result = act()
        except Exception as raised:
            error = [raised]
    dist.broadcast_object_list(error)
    if error[0]:
        raise error[0]
    return result if rank() == 0 else act()
