"""Kim, Distilling Balanced Knowledge from a Biased Teacher (CVPR 2026): the LTKD loss."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.losses.common import (
    flag,
    full_precision,
    group_ids,
    kl_terms,
    logit_pair,
    number,
    process_group_or_none,
)
from ltkd.losses.decomposition import group_log_probs


class LTKDLoss(nn.Module):
    """T^2 [alpha KL(p^T_G || pS_G) + beta sum_G KL(p~T_G || p~S_G)], mean over the batch.

    student_logits  [B, C]
    teacher_logits  [B, C], detached
    groups          [C] group of each class, as from `class_groups`; ids without a class are ignored
    returns         scalar, float32 or float64

    p_G is the probability of group G at softmax(z / T), p~_G the distribution inside it, and p^T_G
    the teacher's p_G divided by its sum over the batch and normalised again in each sample, so that
    all groups weigh about the same in the batch. `rebalance` False takes pT_G as it is. With a
    `process_group` the batch is the global one (one small all-gather a call, which all its ranks
    must make, with a sample each). There is no official code to differ from.
    Raises ValueError, which names the argument, unless alpha, beta >= 0, temperature > 0, groups
    are whole numbers >= 0 and the two logits have one shape, with as many classes.
    """

    groups: Tensor

    def __init__(
        self,
        groups: Sequence[int] | Tensor,
        alpha: float = 1.0,
        beta: float = 1.0,
        temperature: float = 4.0,
        rebalance: bool = True,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        ids, self.n_groups = group_ids(groups)
        self._ids = ids.tolist()
        self.register_buffer("groups", ids, persistent=False)
        self.alpha, self.beta = number("alpha", alpha), number("beta", beta)
        self.temperature = number("temperature", temperature, positive=True)
        self.rebalance = flag("rebalance", rebalance)
        self.process_group = process_group_or_none(process_group)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LTKDLoss":
        """As any module's; but ``to_empty`` would leave ids that no state_dict brings back."""
        super()._apply(fn, recurse)
        if not self.groups.is_meta and self.groups.tolist() != self._ids:
            self.groups = torch.tensor(self._ids, device=self.groups.device)
        return self

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        t = self.temperature
        z_s, z_t = logit_pair(student_logits, teacher_logits)
        with full_precision(z_s):
            ids = self.groups.to(z_s.device)
            groups_s, within_s = group_log_probs(z_s, ids, self.n_groups, t)
            groups_t, within_t = group_log_probs(z_t, ids, self.n_groups, t)
            if self.rebalance:
                groups_t = rebalance(groups_t, log_batch_mass(groups_t, self.process_group))
            cross = kl_terms(groups_t, groups_s).sum(1)
            within = kl_terms(within_t, within_s).sum(1)
            return t**2 * (self.alpha * cross + self.beta * within).mean()

    def extra_repr(self) -> str:
        return (
            f"classes={len(self.groups)}, n_groups={self.n_groups}, alpha={self.alpha:g}, "
            f"beta={self.beta:g}, temperature={self.temperature:g}, rebalance={self.rebalance}"
        )


def rebalance(log_p_groups: Tensor, log_b: Tensor) -> Tensor:
    """log p^_G [B, n] = log_softmax over G of (log p_G - log b_G): p^_G = s_G p_G / sum_H s_H p_H.

    log_p_groups  [B, n]
    log_b         [n] log of the batch's probability in each group; mean(b) in s_G = mean(b) / b_G
                  cancels, and so does any common factor of b
    """
    # A group without any mass in the batch (-inf) keeps none, where -inf + inf would be NaN.
    return F.log_softmax(log_p_groups - log_b.clamp_min(torch.finfo(log_b.dtype).min), 1)


def log_batch_mass(log_p_groups: Tensor, process_group: dist.ProcessGroup | None = None) -> Tensor:
    """log b_G [n], b_G = sum over the batch of p_G [B, n], over all ranks of `process_group`."""
    log_b = log_p_groups.logsumexp(0)
    if process_group is None:
        return log_b
    # Gathered rather than summed: in logs, a group with very little mass does not underflow.
    parts = [torch.empty_like(log_b) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(parts, log_b, group=process_group)
    return torch.stack(parts).logsumexp(0)
