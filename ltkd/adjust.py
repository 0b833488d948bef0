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

    tau      0 leaves the logits, 1 removes the prior (Menon et al., ICLR 2021, equation 9), -1 adds
             it: what balanced softmax does while training
    returns  [B, C], at least float32: in half precision scores would tie, and a tie is the head's
    Raises ValueError where logits are not floating numbers of this shape, counts are not whole
    numbers, one a class, tau is not finite, or a class has no image: its prior has no logarithm.
    """
    prior = _log_prior(logits, counts)
    if not isinstance(tau, Real) or not math.isfinite(tau):
        raise ValueError(f"tau is {tau!r}; it must be a finite Python number")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype) - (tau * prior).to(dtype).to(logits.device)


def fit_tau(
    logits: Tensor,
    counts: Tensor | Sequence[int],
    frequencies: Tensor | Sequence[float] | None = None,
) -> float:
    """The tau at which the cross-entropy on images without labels is least.

    logits       [N, C] about them, of a finished network
    counts       [C] training images of each class
    frequencies  [C] of the classes among the N images, up to a factor; None: all alike

    With q the frequencies, the cross-entropy of softmax(z - tau log pi) is
    mean logsumexp(z - tau log pi) + tau q . log pi, plus a term without tau: labels enter by q
    alone. It is convex in tau, and least where the mean of log pi over the predicted probabilities
    is q . log pi. The tau of highest accuracy may be another. Raises ValueError as
    ``adjust_logits`` does, for logits that are not finite, for frequencies that are negative or all
    zero, and where no single tau is best: all counts are equal (every tau is), or only the largest
    or only the smallest classes have a frequency (it falls for ever). On the processor, in float64:
    about 25 passes, so seconds for 10,000 images of 1,000 classes, and three copies of the logits.
    """
    prior, z = _log_prior(logits, counts), logits.detach().cpu().double()
    if not len(z) or not z.isfinite().all():
        raise ValueError(f"logits, {list(z.shape)}: must be finite, of one image or more")
    try:
        given = [1.0] * len(prior) if frequencies is None else frequencies
        q = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        q = torch.empty(0)
    if q.shape != prior.shape or not (q.isfinite() & (q >= 0)).all() or not q.sum() > 0:
        raise ValueError(
            f"frequencies is {frequencies!r}; it must be [{len(prior)}] finite numbers, none "
            "negative and not all zero"
        )
    wanted = float(q @ prior / q.sum())
    edge = 1e-9 * float(prior.max() - prior.min())  # nearer to an end it is rounding
    if not float(prior.min()) + edge < wanted < float(prior.max()) - edge:
        raise ValueError(
            "no single tau is best: counts are all equal, or only the largest or only the smallest "
            "classes have a frequency"
        )

    def too_small(tau: float) -> bool:
        return float(((z - tau * prior).softmax(1) @ prior).mean()) > wanted

    low, high = -1.0, 1.0
    while not too_small(low):
        low *= 2
    while too_small(high):
        high *= 2
    while high - low > 1e-6 * max(1.0, abs(high)):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return (low + high) / 2


def _log_prior(logits: Tensor, counts: Tensor | Sequence[int]) -> Tensor:
    """log pi [C] in float64, on the processor: not every GPU has float64."""
    counts = whole_numbers("counts", counts).cpu()
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = logits.dtype if isinstance(logits, Tensor) else f"of type {type(logits).__name__}"
        raise ValueError(f"logits is {given}; it must be a tensor of a floating dtype")
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {list(logits.shape)}; it must be [B, C]")
    if len(counts) != logits.shape[1]:
        raise ValueError(f"counts has {len(counts)} classes, the logits {logits.shape[1]}")
    if (counts < 1).any():
        empty = (counts < 1).nonzero().flatten().tolist()
        raise ValueError(
            f"counts: classes {empty} have no image, so their prior cannot be removed; leave their "
            "columns out, or count them as 1"
        )
    return (counts.double() / counts.sum()).log()
