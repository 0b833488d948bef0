"""The identity KL = cross-group + weighted within-group, and the parts against literal loops."""

import literal
import pytest
import torch

from ltkd.groups import class_groups
from ltkd.losses import Decomposition, decompose


def logits(batch: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, batch, classes, dtype=torch.float64, generator=generator)
    return draw[0] * 3, draw[1] * 5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_identity_for_every_number_of_groups(temperature: float) -> None:
    classes = 23
    student, teacher = logits(16, classes)
    counts = torch.randint(0, 50, (classes,), generator=torch.Generator().manual_seed(1))
    for n in range(1, classes + 1):
        d = decompose(student, teacher, class_groups(counts, n), temperature)
        assert isinstance(d, Decomposition)
        assert d.within.shape == d.weights.shape == (16, n)
        difference = d.total - d.cross - (d.weights * d.within).sum(1)
        assert difference.abs().max() < 1e-12
        torch.testing.assert_close(d.weights.sum(1), torch.ones(16, dtype=torch.float64))
        if n == 1:
            assert d.cross.abs().max() < 1e-12
        if n == classes:
            assert (d.within == 0).all()


def test_parts_against_literal_loops() -> None:
    student, teacher = logits(5, 9, seed=3)
    groups = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2, 2])
    d = decompose(student, teacher, groups, temperature=2.5)
    for b in range(5):
        p, q = literal.softmax(teacher[b], 2.5), literal.softmax(student[b], 2.5)
        mass_p, inside_p = literal.split(p, groups)
        mass_q, inside_q = literal.split(q, groups)
        assert abs(d.total[b] - literal.kl(p, q)) < 1e-13
        assert abs(d.cross[b] - literal.kl(mass_p, mass_q)) < 1e-13
        for g in range(3):
            assert abs(d.weights[b, g] - mass_p[g]) < 1e-14
            assert abs(d.within[b, g] - literal.kl(inside_p[g], inside_q[g])) < 1e-13


def test_permuting_classes_with_their_groups_changes_nothing() -> None:
    student, teacher = logits(6, 12, seed=4)
    groups = class_groups(list(range(12)), 5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for a, b in zip(
        decompose(student, teacher, groups),
        decompose(student[:, order], teacher[:, order], groups[order]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_ids_without_a_class_are_ignored_and_sequences_accepted() -> None:
    student, teacher = logits(4, 5)
    with pytest.warns(UserWarning, match="an id 900 for 5 classes"):  # it might be a count
        gaps = decompose(student, teacher, [7, 2, 2, 900, 7])
    dense = decompose(student, teacher, torch.tensor([1, 0, 0, 2, 1]))
    for a, b in zip(gaps, dense, strict=True):
        assert torch.equal(a, b)


def test_gradcheck_with_ties_of_a_groups_maximum() -> None:
    student = torch.tensor([[1.0, 1.0, 0.5, -2.0, -2.0, -2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.3, 0.3, 0.3, 1.0, 1.0, -1.0]], dtype=torch.float64)
    student.requires_grad_()
    groups = [0, 0, 1, 1, 2, 2]
    assert torch.autograd.gradcheck(
        lambda s: sum(part.sum() for part in decompose(s, teacher, groups)), (student,)
    )


def test_a_group_far_below_the_rest_keeps_its_digits() -> None:
    """In float32 a group 2000 below the top still has an exact distribution inside it."""
    student = torch.tensor([[2000.0, 0.25, 0.0, 0.5]])
    teacher = torch.tensor([[2000.0, 1.0, 0.5, -0.5]])
    tail = decompose(student, teacher, [0, 1, 1, 1]).within[0, 1]
    p = literal.softmax(teacher[0, 1:].double(), 1)
    q = literal.softmax(student[0, 1:].double(), 1)
    torch.testing.assert_close(tail.double(), literal.kl(p, q), rtol=1e-5, atol=1e-7)


def test_masked_teacher_classes_count_as_zero() -> None:
    """Logits of -inf: 0 log 0 = 0, for single classes and for a whole group."""
    student, teacher = logits(3, 6)
    student.requires_grad_()
    teacher[0, 1] = teacher[1, 2:4] = -torch.inf
    d = decompose(student, teacher, [0, 0, 1, 1, 2, 2])
    assert d.within[1, 1] == 0
    assert (d.total - d.cross - (d.weights * d.within).sum(1)).abs().max() < 1e-12
    sum(part.sum() for part in d).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_errors() -> None:
    student, teacher = logits(2, 4)
    with pytest.raises(ValueError, match=r"groups has 3 ids; it must have 4"):
        decompose(student, teacher, [0, 1, 2])
    with pytest.raises(ValueError, match=r"temperature is 0.*> 0"):
        decompose(student, teacher, [0, 1, 2, 2], temperature=0)
