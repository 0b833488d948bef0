"""Huang et al., Knowledge Distillation from A Stronger Teacher (DIST, NeurIPS 2022), L_tr."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.losses.common import full_precision, logit_pair, number, process_group_or_none


class DISTLoss(nn.Module):
    """T^2 [beta (1 - mean_B r(pS_b, pT_b)) + gamma (1 - mean_C r(pS^c, pT^c))], r = Pearson.

    student_logits  [B, C]
    teacher_logits  [B, C], detached
    returns         scalar, float32 or float64

    p = softmax(z / T); p_b is a sample's row (inter-class), p^c a class's column (intra-class).
    The T^2 is in the official code and not in the paper's pseudocode. With a `process_group` the
    columns are those of the global batch, gathered from all its ranks, which must all call it with
    one B. Raises ValueError unless beta, gamma >= 0, temperature > 0 and the two logits agree.
    """

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 2.0,
        temperature: float = 4.0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.process_group = process_group_or_none(process_group)
        self.beta, self.gamma = number("beta", beta), number("gamma", gamma)
        self.temperature = number("temperature", temperature, positive=True)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        z_s, z_t = logit_pair(student_logits, teacher_logits)
        with full_precision(z_s):
            p_s = F.softmax(z_s / self.temperature, 1)
            p_t = F.softmax(z_t / self.temperature, 1)
            inter = 1 - pearson(p_s, p_t, dim=1).mean()
            if self.process_group is not None:
                from torch.distributed.nn.functional import all_gather  # with a gradient

                p_s, p_t = (torch.cat(all_gather(p, self.process_group)) for p in (p_s, p_t))
            intra = 1 - pearson(p_s, p_t, dim=0).mean()
            return self.temperature**2 * (self.beta * inter + self.gamma * intra)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, gamma={self.gamma:g}, temperature={self.temperature:g}"


def pearson(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Pearson correlation of two [B, C] tensors along `dim`; about 0 where one is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)
