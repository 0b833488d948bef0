"""A method as a module: its formula's two terms, weighted and shifted by the class prior."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import LOSSES, Entry
from .methods import Args, Method


class Objective(nn.Module):
    """A method's two terms, weighted: what ``build`` makes of it.

    term    the distillation loss; what it trains beside the student (ReviewKD's fusion) is its own
    counts  training images a class, [C]
    warmup  fraction of the schedule over which the distillation term rises to its weight
    """

    log_counts: Tensor
    log_prior: Tensor

    def __init__(
        self,
        method: Method,
        term: nn.Module | None,
        counts: Sequence[int],
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        n = torch.as_tensor(counts, dtype=torch.float64)
        empty = (n < 1).nonzero().flatten().tolist()
        if empty and (method.balanced or method.adjust):
            raise ValueError(
                f"method {method.name!r} needs an image of every class; none of {empty}"
            )
        self.method, self.term = method, term
        self.entry = LOSSES[method.loss] if method.loss else Entry(None)
        self.ce_weight, self.kd_weight, self.warmup = ce_weight, kd_weight, warmup
        self.register_buffer("log_counts", n.log(), persistent=False)
        self.register_buffer("log_prior", (n / n.sum()).log(), persistent=False)

    def ramp(self, epoch: int, epochs: int) -> float:
        """Weight of the distillation term in this epoch (from 1): min(epoch / W, 1)."""
        return min(epoch / max(self.warmup * epochs, 1.0), 1.0)

    def forward(
        self, logits: Tensor, student: Any, teacher: Any, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(label term, distillation term), scalars.

        logits            the student's, [B, C] in fp32
        student, teacher  what the loss compares, as ``answer`` gives it; teacher None: no term
        targets           [B]
        """
        prior = self.log_prior.to(logits.dtype)
        shifted = logits + self.log_counts.to(logits.dtype) if self.method.balanced else logits
        label = self.ce_weight * F.cross_entropy(shifted, targets)
        if self.term is None or teacher is None:
            return label, torch.zeros_like(label)
        if self.method.adjust == "teacher":
            teacher = teacher - prior
        if self.method.adjust == "student":
            student = student + prior
        extra = (targets,) if self.entry.targets else ()
        return label, self.kd_weight * self.term(student, teacher, *extra)


def build(
    method: Method,
    args: Args,
    counts: Sequence[int],
    groups: Sequence[int] | None = None,
    levels: Sequence[Sequence[int]] = (),
    process_group: Any = None,
) -> Objective:
    """The objective of a method with these arguments.

    counts  training images of each class;  groups  a group id of each
    levels  what ReviewKD's fusion is built for: the widths of the student's levels, those of the
            teacher's, and the teacher's sizes
    process_group  whose processes share each batch; None: this one has it alone
    """
    rest: dict[str, Any] = dict(args)
    outer = {k: rest.pop(k) for k in ("ce_weight", "kd_weight", "warmup") if k in rest}
    if "pool" in rest:
        rest["pool"] = int(rest["pool"])
    if process_group and method.loss in ("ltkd", "dist"):  # they look across the whole batch
        rest["process_group"] = process_group
    first = {"ltkd": (groups,), "reviewkd": levels}.get(method.loss or "", ())
    term = LOSSES[method.loss].loss(*first, **rest) if method.loss else None
    return Objective(method, term, counts, **outer)
