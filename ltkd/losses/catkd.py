"""Guo et al., Class Attention Transfer Based Knowledge Distillation (CVPR 2023), L_CAT."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.losses.common import average_pool, flag, floating, full_precision, number, raised


class CATKDLoss(nn.Module):
    """beta MSE(pool_r(CAM_S), pool_r(CAM_T)), mean over B C r^2.

    student_maps  [B, C, H, W] class activation maps
    teacher_maps  [B, C, H', W'], detached; the sizes may differ, as both are pooled to r x r
    beta          weight of the loss
    pool          r
    normalize     divide each pooled map by its L2 norm over H and W (at least 1e-12)
    returns       scalar, float32 or float64

    The official networks have no classifier bias; here the maps leave it
    out (`ltkd.models.class_activation_maps`).
    """

    def __init__(self, beta: float, pool: int, normalize: bool) -> None:
        super().__init__()
        self.beta, self.normalize = number("beta", beta), flag("normalize", normalize)
        self.pool = pool
        if not isinstance(pool, int) or isinstance(pool, bool) or pool < 1:
            raise ValueError(f"pool is {pool!r}; it must be a whole number >= 1")

    def forward(self, student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
        s = list(floating("student_maps", student_maps).shape)
        t = list(floating("teacher_maps", teacher_maps).shape)
        if len(s) != 4 or 0 in s:
            raise ValueError(f"student_maps has shape {s}; it must be [B, C, H, W], none of them 0")
        if len(t) != 4 or 0 in t or s[:2] != t[:2]:
            raise ValueError(f"teacher_maps has shape {t}; it must be [{s[0]}, {s[1]}, H, W]")
        with full_precision(student_maps):
            maps = [average_pool(m, self.pool) for m in raised(student_maps, teacher_maps)]
            if self.normalize:
                maps = [F.normalize(m.flatten(2), dim=2, eps=1e-12) for m in maps]
            return self.beta * F.mse_loss(maps[0], maps[1])

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, pool={self.pool}, normalize={self.normalize}"
