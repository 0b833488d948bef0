"""Zhao et al., Decoupled Knowledge Distillation (CVPR 2022), equation 7."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.losses.common import described, full_precision, kl_terms, logit_pair, number


class DKDLoss(nn.Module):
    """T^2 (alpha TCKD + beta NCKD), mean over the batch.

    student_logits  [B, C], C >= 2
    teacher_logits  [B, C], detached
    targets         [B] integer labels, 0 to C - 1; there is no ignore_index
    returns         scalar, float32 or float64

    TCKD = KL of the pairs [p_target, 1 - p_target]; NCKD = KL over the other classes, renormalised:
    KL = TCKD + (1 - pT_target) NCKD. The official code subtracts 1000 from the target's logit
    instead of removing it, and takes the log of bare probabilities, NaN once one underflows.
    Where the teacher's logits are -inf off the target NCKD is undefined, and the result NaN.
    Raises ValueError unless alpha, beta >= 0, temperature > 0 and the tensors are these.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha, self.beta = number("alpha", alpha), number("beta", beta)
        self.temperature = number("temperature", temperature, positive=True)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        z_s, z_t = logit_pair(student_logits, teacher_logits)
        with full_precision(z_s):
            pair_s, others_s = split_target(z_s / self.temperature, targets)
            pair_t, others_t = split_target(z_t / self.temperature, targets)
            tckd = kl_terms(pair_t, pair_s).sum(1)
            nckd = kl_terms(others_t, others_s).sum(1)
            return self.temperature**2 * (self.alpha * tckd + self.beta * nckd).mean()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, beta={self.beta:g}, temperature={self.temperature:g}"


def split_target(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log [p_target, 1 - p_target], [B, 2], and the log-softmax of the other classes, [B, C - 1].

    z        [B, C] logits, C >= 2
    targets  [B] integer labels
    """
    if z.shape[1] < 2:
        raise ValueError("student_logits has 1 class; non-target classes need at least 2")
    whole = isinstance(targets, Tensor) and not targets.is_floating_point()
    if not whole or targets.shape != z.shape[:1] or targets.dtype == torch.bool:
        given = described(targets)
        raise ValueError(f"targets is {given}; it must be [{len(z)}] integer labels, one a sample")
    target = targets.long()[:, None]
    others = torch.arange(z.shape[1] - 1, device=z.device).expand(len(z), -1)
    rest = z.gather(1, others + (others >= target).long())
    pair = torch.cat([z.gather(1, target), rest.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(pair, 1), F.log_softmax(rest, 1)
