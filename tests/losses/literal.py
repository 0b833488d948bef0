"""The equations as Python loops over scalars: slow, naive, float64, and differentiable.

Nothing here comes from ltkd. Logits must be mild, as logs of bare probabilities are taken.
"""

import torch
from torch import Tensor


def softmax(row: Tensor, temperature: float) -> list[Tensor]:
    exps = [torch.exp(z / temperature) for z in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def members(groups: Tensor) -> list[list[int]]:
    ids = groups.tolist()
    return [[c for c in range(len(ids)) if ids[c] == g] for g in sorted(set(ids))]


def split(p: list[Tensor], groups: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Group probabilities p_G, and the distribution inside each group."""
    mass = [sum(p[c] for c in cs) for cs in members(groups)]
    inside = [[p[c] / m for c in cs] for cs, m in zip(members(groups), mass, strict=True)]
    return mass, inside


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total = total + kl(softmax(t, temperature), softmax(s, temperature))
    return temperature**2 * total / len(student)


def ltkd(
    student: Tensor,
    teacher: Tensor,
    groups: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    rebalance: bool,
) -> Tensor:
    splits_t = [split(softmax(t, temperature), groups) for t in teacher]
    n = len(members(groups))
    b = [sum(mass[g] for mass, _ in splits_t) for g in range(n)]
    scale = [sum(b) / n / b[g] if rebalance else 1.0 for g in range(n)]
    total = 0.0
    for s, (mass_t, inside_t) in zip(student, splits_t, strict=True):
        mass_s, inside_s = split(softmax(s, temperature), groups)
        z = sum(scale[g] * mass_t[g] for g in range(n))
        target = [scale[g] * mass_t[g] / z for g in range(n)]
        within = sum(kl(inside_t[g], inside_s[g]) for g in range(n))
        total = total + alpha * kl(target, mass_s) + beta * within
    return temperature**2 * total / len(student)


def dkd(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    total = 0.0
    for s, t, y in zip(student, teacher, targets.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        rest = [c for c in range(len(p)) if c != y]
        rest_p, rest_q = sum(p[c] for c in rest), sum(q[c] for c in rest)
        tckd = kl([p[y], rest_p], [q[y], rest_q])
        nckd = kl([p[c] / rest_p for c in rest], [q[c] / rest_q for c in rest])
        total = total + alpha * tckd + beta * nckd
    return temperature**2 * total / len(student)


def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    norm_a = sum((x - mean_a) ** 2 for x in a) ** 0.5
    norm_b = sum((y - mean_b) ** 2 for y in b) ** 0.5
    return top / (norm_a * norm_b + 1e-8)


def dist(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    p = [softmax(t, temperature) for t in teacher]
    q = [softmax(s, temperature) for s in student]
    rows, columns = range(len(p)), range(len(p[0]))
    inter = sum(correlation(q[b], p[b]) for b in rows) / len(rows)
    intra = sum(correlation([r[c] for r in q], [r[c] for r in p]) for c in columns) / len(columns)
    return temperature**2 * (beta * (1 - inter) + gamma * (1 - intra))


def pool(plane: Tensor, size: int) -> list[Tensor]:
    """Adaptive average pooling of [H, W]: cell i spans floor(i H / n) to ceil((i + 1) H / n)."""
    h, w = plane.shape
    cells = []
    for i in range(size):
        for j in range(size):
            rows = range(i * h // size, -(-(i + 1) * h // size))
            columns = range(j * w // size, -(-(j + 1) * w // size))
            values = [plane[r, c] for r in rows for c in columns]
            cells.append(sum(values) / len(values))
    return cells


def catkd(student: Tensor, teacher: Tensor, beta: float, size: int, normalize: bool) -> Tensor:
    squares = []
    for b in range(student.shape[0]):
        for c in range(student.shape[1]):
            s, t = pool(student[b, c], size), pool(teacher[b, c], size)
            if normalize:
                norm_s, norm_t = sum(x**2 for x in s) ** 0.5, sum(x**2 for x in t) ** 0.5
                s, t = [x / norm_s for x in s], [x / norm_t for x in t]
            squares += [(x - y) ** 2 for x, y in zip(s, t, strict=True)]
    return beta * sum(squares) / len(squares)
