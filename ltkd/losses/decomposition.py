"""Kim (LTKD, CVPR 2026): KL split into a cross-group and a within-group part, an identity."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltkd.losses.common import full_precision, group_ids, kl_terms, logit_pair, number


class Decomposition(NamedTuple):
    """The parts of KL(pT || pS), a sample each: total == cross + (weights * within).sum(1)."""

    cross: Tensor
    """[B] KL(pT_G || pS_G), between the group probabilities"""
    within: Tensor
    """[B, n] KL(p~T_G || p~S_G), between the classes of each group"""
    weights: Tensor
    """[B, n] pT_G, what KL multiplies `within` by: a teacher biased to the head mutes the tail"""
    total: Tensor
    """[B] KL(pT || pS), computed directly"""


def decompose(
    student_logits: Tensor,
    teacher_logits: Tensor,
    groups: Sequence[int] | Tensor,
    temperature: float = 1.0,
) -> Decomposition:
    """KL(pT || pS) = KL(pT_G || pS_G) + sum_G pT_G KL(p~T_G || p~S_G), at softmax(z / T), no T^2.

    student_logits, teacher_logits  [B, C], the teacher detached
    groups                          [C] group of each class, n different ids; columns in id order
    returns                         Decomposition: cross [B], within [B, n], weights [B, n], total
    """
    ids, n = group_ids(groups)
    t = number("temperature", temperature, positive=True)
    z_s, z_t = logit_pair(student_logits, teacher_logits)
    with full_precision(z_s):
        ids = ids.to(z_s.device)
        groups_s, within_s = group_log_probs(z_s, ids, n, t)
        groups_t, within_t = group_log_probs(z_t, ids, n, t)
        terms = kl_terms(within_t, within_s)
        return Decomposition(
            cross=kl_terms(groups_t, groups_s).sum(1),
            within=terms.new_zeros(len(z_s), n).index_add(1, ids, terms),
            weights=groups_t.exp(),
            total=kl_terms(F.log_softmax(z_t / t, 1), F.log_softmax(z_s / t, 1)).sum(1),
        )


def group_log_probs(z: Tensor, ids: Tensor, n: int, temperature: float) -> tuple[Tensor, Tensor]:
    """log p_G [B, n] and log p~ [B, C] of p = softmax(z / T), O(B C) for any number of groups.

    z    [B, C] logits
    ids  [C] group of each class, 0..n-1, each of them used

    log p_G = log_softmax over G of logsumexp_{i in G} z_i / T;  log p~_i = z_i / T - logsumexp_G.
    Each group is shifted by its own maximum, so that a group far below the rest keeps its digits.
    """
    if len(ids) != z.shape[1]:
        raise ValueError(f"groups has {len(ids)} ids; it must have {z.shape[1]}, one a class")
    # The result does not depend on the shift: a constant, whose ties have no say in the gradient.
    peak = z.new_full((len(z), n), -torch.inf)
    peak = peak.scatter_reduce(1, ids.expand_as(z), z.detach(), "amax")
    # The two clamps act only where a whole group is -inf (masked): its p_G is 0, never NaN.
    peak_of_class = peak.clamp_min(torch.finfo(z.dtype).min).index_select(1, ids)
    shifted = (z - peak_of_class) / temperature
    log_sum = z.new_zeros(len(z), n).index_add(1, ids, shifted.exp()).clamp_min(1).log()
    return F.log_softmax(peak / temperature + log_sum, 1), shifted - log_sum.index_select(1, ids)
