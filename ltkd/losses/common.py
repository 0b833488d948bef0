"""What the losses share: argument checks, precision, and a KL that survives underflow."""

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ltkd.groups import whole_numbers


def number(name: str, value: float, *, positive: bool = False) -> float:
    """`value` as a float; ValueError unless it is finite and >= 0 (> 0 if `positive`)."""
    allowed = "a finite number > 0" if positive else "a finite number >= 0"
    try:
        result = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}") from None
    if not math.isfinite(result) or result < 0 or (positive and result == 0):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
    return result


def flag(name: str, value: bool) -> bool:
    """`value`; ValueError unless it is True or False: a text would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be True or False")
    return value


def process_group_or_none(value: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """`value`; ValueError unless it is a process group or None: a name or True would be taken for
    one until the first call, and torch gives a process outside a new group a number."""
    if value is not None and not isinstance(value, dist.ProcessGroup):
        raise ValueError(
            f"process_group is {value!r}; it must be a torch.distributed ProcessGroup or None"
        )
    return value


def described(value: object) -> str:
    """What an error says of a value that is not the tensor it should be."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {value.dtype}"
    return f"of type {type(value).__name__}"


def floating(name: str, value: Tensor) -> Tensor:
    """`value`; ValueError unless it is a tensor of a floating dtype."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} is {described(value)}; it must be a tensor of a floating dtype")
    return value


def group_ids(groups: Sequence[int] | Tensor) -> tuple[Tensor, int]:
    """[C] ids -> the same partition with ids 0..n-1, and n. Ids that own no class vanish; one
    as large as a class's count, not below C nor one of three, brings a warning."""
    given = whole_numbers("groups", groups)
    if (most := int(given.max())) >= max(3, len(given)):
        warnings.warn(f"groups has an id {most} for {len(given)} classes; where these are counts "
                      "of images, class_groups(counts) is meant", stacklevel=3)  # fmt: skip
    ids, compressed = torch.unique(given, return_inverse=True)
    return compressed, len(ids)


def logit_pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Two [B, C] tensors, checked; see `raised`."""
    s = list(floating("student_logits", student_logits).shape)
    t = list(floating("teacher_logits", teacher_logits).shape)
    if len(s) != 2 or s[0] == 0 or s[1] == 0:
        raise ValueError(f"student_logits has shape {s}; it must be [B, C] with B, C >= 1")
    if s != t:
        raise ValueError(f"teacher_logits has shape {t}; it must equal that of student_logits, {s}")
    return raised(student_logits, teacher_logits)


def raised(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, at least float32 (float64 stays); the teacher detached. ValueError where
    they look swapped: nothing would be learned, and nothing would say so."""
    if torch.is_grad_enabled() and teacher.requires_grad and not student.requires_grad:
        raise ValueError("the teacher's tensor needs a gradient and the student's does not; are "
                         "they swapped? The student's comes first. If not, detach the teacher's"
                         )  # fmt: skip
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 or more; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Autocast off: it would lower again what `raised` has raised."""
    return torch.autocast(tensor.device.type, enabled=False)


def average_pool(maps: Tensor, size: int) -> Tensor:
    """[B, C, h, h] -> [B, C, size, size], any size: adaptive average pooling.

    Where ``size`` divides h these are plain windows: the same numbers, and a gradient that torch
    can give to the bit on a GPU, which it cannot for adaptive ones.
    """
    side = maps.shape[-1]
    if size > 1 and side % size == 0 and maps.shape[-2] == side:  # 1 is a mean, equal already
        return F.avg_pool2d(maps, side // size)
    return F.adaptive_avg_pool2d(maps, size)


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), elementwise; 0 where p is 0, as the limit is (0 * inf would be NaN)."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q))
