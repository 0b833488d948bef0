"""Post-hoc logit adjustment: the class prior taken out of a student that is already trained.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1: cross-entropy on a
long tail learns p(y | x), in proportion to p(y) p(x | y), so that on a balanced test set
argmax z - tau log pi is the better answer, at tau = 1 the consistent one. It needs no training, and
it is a rival of every loss that corrects the same bias while training.
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .groups import whole_numbers


def adjust_logits(logits: Tensor, counts: Tensor | Sequence[int], tau: float = 1.0) -> Tensor:
    """logits [B, C] - tau log pi, with pi = counts / sum(counts) of the training images [C].

    tau      0 leaves the logits, 1 removes the prior. Menon et al., ICLR 2021, equation 9.
    returns  [B, C], at least float32: in half precision scores would tie, and a tie is the head's
    Raises ValueError where logits are not floating numbers of this shape, counts are not whole
    numbers, one a class, tau is not finite, or a class has no image: its prior has no logarithm.
    """
    counts = whole_numbers("counts", counts).cpu()
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = logits.dtype if isinstance(logits, Tensor) else f"of type {type(logits).__name__}"
        raise ValueError(f"logits is {given}; it must be a tensor of a floating dtype")
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {list(logits.shape)}; it must be [B, C]")
    if len(counts) != logits.shape[1]:
        raise ValueError(f"counts has {len(counts)} classes, the logits {logits.shape[1]}")
    if not isinstance(tau, Real) or not math.isfinite(tau):
        raise ValueError(f"tau is {tau!r}; it must be a finite number")
    if (counts < 1).any():
        empty = (counts < 1).nonzero().flatten().tolist()
        raise ValueError(f"counts: classes {empty} have no image, so their prior cannot be removed")
    prior = (counts.double() / counts.sum()).log()  # on the processor: not every GPU has float64
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype) - (tau * prior).to(dtype).to(logits.device)
