"""Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.losses.common import full_precision, kl_terms, logit_pair, number


class KDLoss(nn.Module):
    """T^2 KL(pT || pS) with p = softmax(z / T), mean over the batch.

    student_logits  [B, C]
    teacher_logits  [B, C], detached
    returns         scalar, float32 or float64

    The authors' T^2 keeps the gradient's size as T grows; common code averages over B as here.
    Raises ValueError unless temperature > 0 and the two logits have one shape.
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, positive=True)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        t = self.temperature
        z_s, z_t = logit_pair(student_logits, teacher_logits)
        with full_precision(z_s):
            log_s, log_t = F.log_softmax(z_s / t, 1), F.log_softmax(z_t / t, 1)
            return t**2 * kl_terms(log_t, log_s).sum(1).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"
