"""LTKD against a literal loop, and the facts that follow from its definition."""

import math

import literal
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ltkd.groups import class_groups
from ltkd.losses import KDLoss, LTKDLoss, decompose
from ltkd.losses.ltkd import log_batch_mass, rebalance


def logits(batch: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, batch, classes, dtype=torch.float64, generator=generator)
    return (draw[0] * 2).requires_grad_(), draw[1] * 3


@pytest.mark.parametrize("rebalanced", [True, False])
@pytest.mark.parametrize(
    ("batch", "classes", "n", "alpha", "beta", "temperature"),
    [(1, 1, 1, 1, 1, 4), (1, 7, 3, 1, 1, 4), (6, 10, 3, 0.7, 2.5, 2), (5, 8, 8, 3, 0.5, 1),
     (4, 9, 1, 1, 2, 5), (7, 13, 5, 0, 1, 4), (7, 13, 5, 1, 0, 4)],
)  # fmt: skip
def test_value_and_gradient_against_a_literal_loop(
    batch, classes, n, alpha, beta, temperature, rebalanced
) -> None:
    student, teacher = logits(batch, classes, seed=batch + classes)
    groups = torch.arange(classes)[torch.randperm(classes)] % n
    loss = LTKDLoss(groups, alpha, beta, temperature, rebalanced)(student, teacher)
    expected = literal.ltkd(student, teacher, groups, alpha, beta, temperature, rebalanced)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    got, want = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rebalanced", [True, False])
def test_gradcheck(rebalanced: bool) -> None:
    student, teacher = logits(3, 7)
    criterion = LTKDLoss([0, 1, 1, 2, 0, 2, 2], 1.5, 0.5, 2.0, rebalanced)
    assert torch.autograd.gradcheck(lambda s: criterion(s, teacher), (student,))


def test_gradient_at_ties_of_a_groups_maximum() -> None:
    student = torch.tensor([[1.0, 1, 1, -1, -1, 0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2.0, 2, 0, 0, -1, -1]], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    loss = LTKDLoss(groups)(student, teacher)
    expected = literal.ltkd(student, teacher, groups, 1, 1, 4, True)
    got, want = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_unscaled_target_with_teacher_weights_is_kl() -> None:
    """s = 1 and weights pT_G on the within terms give plain distillation."""
    student, teacher = logits(8, 20)
    d = decompose(student, teacher, class_groups(list(range(20))), 4.0)
    weighted = 16 * (d.cross + (d.weights * d.within).sum(1)).mean()
    torch.testing.assert_close(weighted, KDLoss(4.0)(student, teacher), rtol=0, atol=1e-12)
    plain = LTKDLoss(class_groups(list(range(20))), rebalance=False)(student, teacher)
    expected = 16 * (d.cross + d.within.sum(1)).mean()
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rebalanced", [True, False])
def test_one_group_is_beta_kl(rebalanced: bool) -> None:
    student, teacher = logits(8, 20)
    loss = LTKDLoss([0] * 20, alpha=3.0, beta=0.7, rebalance=rebalanced)(student, teacher)
    torch.testing.assert_close(loss, 0.7 * KDLoss()(student, teacher), rtol=0, atol=1e-12)


def test_every_class_its_own_group() -> None:
    """n = C: every within term is exactly zero; without rebalancing the rest is alpha KL."""
    student, teacher = logits(8, 20)
    groups = torch.arange(20)
    assert LTKDLoss(groups, alpha=0)(student, teacher) == 0
    loss = LTKDLoss(groups, alpha=0.3, rebalance=False)(student, teacher)
    torch.testing.assert_close(loss, 0.3 * KDLoss()(student, teacher), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_it_is_zero_at_the_teachers_logits_less_the_groups_log_mass(n: int) -> None:
    """z_S = z_T - T log b_G, with any constant a sample; elsewhere it is not."""
    _, teacher = logits(8, 20)
    groups, t = class_groups(list(range(20)), n), 3.0
    p = (teacher / t).softmax(1)
    b = torch.stack([p[:, groups == g].sum() for g in range(n)])
    student = teacher - t * b.log()[groups] + torch.randn(8, 1, dtype=torch.float64)
    loss = LTKDLoss(groups, alpha=2.0, beta=0.5, temperature=t)
    student.requires_grad_()
    found = loss(student, teacher)
    assert abs(found.item()) < 1e-13
    assert torch.autograd.grad(found, student)[0].abs().max() < 1e-13
    if n > 1:
        assert loss(teacher, teacher) > 1e-3


def test_permuting_classes_with_their_groups_changes_nothing() -> None:
    student, teacher = logits(6, 12)
    groups = class_groups(list(range(12)), 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    a = LTKDLoss(groups)(student, teacher)
    b = LTKDLoss(groups[order])(student[:, order], teacher[:, order])
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    relabelled = LTKDLoss((groups * 7 + 3) % 5)(student, teacher)  # other names for the groups
    torch.testing.assert_close(a, relabelled, rtol=0, atol=1e-12)


def test_ids_without_a_class_are_ignored() -> None:
    student, teacher = logits(6, 4)
    assert LTKDLoss([0, 0, 2, 2])(student, teacher) == LTKDLoss([0, 0, 1, 1])(student, teacher)
    assert LTKDLoss([1, 1, 3, 3]).n_groups == 2


def test_counts_in_the_place_of_groups_bring_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"an id 9 for 4 classes.*class_groups\(counts\)"):
        assert LTKDLoss([5, 5, 9, 9]).n_groups == 2


def test_rebalanced_target() -> None:
    """p^ = s p / sum(s p), s = mean(b) / b; a common factor of b cancels."""
    p = torch.rand(16, 5, dtype=torch.float64)
    p = p * torch.tensor([100.0, 10, 1, 0.1, 0.01], dtype=torch.float64)
    p = p / p.sum(1, keepdim=True)
    b = p.sum(0)
    s = b.mean() / b
    expected = s * p / (s * p).sum(1, keepdim=True)
    log_b = log_batch_mass(p.log())
    torch.testing.assert_close(log_b.exp(), b, rtol=1e-13, atol=0)
    torch.testing.assert_close(rebalance(p.log(), log_b).exp(), expected, rtol=1e-12, atol=0)
    for factor in (1e-6, 1 / 16, 1e9):
        scaled = rebalance(p.log(), log_b + math.log(factor))
        torch.testing.assert_close(scaled.exp(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_batch_of_one_is_rebalanced_to_exactly_uniform(dtype: torch.dtype, n: int) -> None:
    log_p = torch.log_softmax(torch.randn(1, n, dtype=dtype) * 50, 1)
    target = rebalance(log_p, log_batch_mass(log_p))
    assert torch.equal(target, torch.zeros(1, n, dtype=dtype).log_softmax(1))


def test_group_without_teacher_mass_gets_no_target() -> None:
    student, teacher = logits(5, 6)
    teacher[:, 2:4] = -torch.inf
    criterion = LTKDLoss([0, 0, 1, 1, 2, 2])
    loss = criterion(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    log_p = torch.log_softmax(torch.tensor([[1.0, -torch.inf, 0.0], [0.5, -torch.inf, 2.0]]), 1)
    target = rebalance(log_p, log_batch_mass(log_p)).exp()
    assert (target[:, 1] == 0).all()
    torch.testing.assert_close(target.sum(1), torch.ones(2))


def test_nan_is_not_hidden() -> None:
    student, teacher = logits(5, 6)
    teacher[2, 3] = torch.nan
    assert LTKDLoss([0, 0, 1, 1, 2, 2])(student, teacher).isnan()


def test_groups_are_a_buffer() -> None:
    criterion = LTKDLoss([0, 1, 1], alpha=0.5)
    assert dict(criterion.named_buffers())["groups"].tolist() == [0, 1, 1]
    assert "classes=3, n_groups=2, alpha=0.5" in repr(criterion)
    assert not criterion.state_dict()


def test_groups_outlive_a_network_that_is_built_without_storage() -> None:
    student, teacher = logits(6, 3)
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(2, 3), LTKDLoss([0, 1, 1]))
    criterion = module.to("meta").to_empty(device="cpu")[1]
    assert criterion(student, teacher) == LTKDLoss([0, 1, 1])(student, teacher)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, -1, 2], r"groups\[1\] is -1"),
        ([0.0, 1.0], r"groups is torch.float32"),
        ([True, False], r"groups is torch.bool"),
        ([], r"groups has shape \[0\]"),
        ([[0, 1]], r"groups has shape \[1, 2\]"),
    ],
)
def test_bad_groups(groups, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LTKDLoss(groups)


def test_rebalance_is_no_text() -> None:
    with pytest.raises(ValueError, match="rebalance is 'false'; it must be True or False"):
        LTKDLoss([0, 1, 2], rebalance="false")


def test_groups_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"groups has 3 ids; it must have 4"):
        LTKDLoss([0, 1, 2])(torch.zeros(2, 4), torch.zeros(2, 4))


class Tally(TorchDispatchMode):
    """Operations and the elements they return."""

    operations = 0
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        self.elements += out.numel() if isinstance(out, Tensor) else 0
        return out


def test_work_is_flat_in_the_number_of_groups() -> None:
    classes, tallies = 100, []
    student, teacher = logits(16, classes)
    for n in (1, 3, 50, 100):
        criterion = LTKDLoss(class_groups(list(range(classes)), n))
        with Tally() as tally:
            criterion(student, teacher).backward()
        tallies.append(tally)
    assert len({t.operations for t in tallies}) == 1
    # [B, n] tensors stand beside the [B, C] ones: at most as many of them again.
    assert tallies[-1].elements < 2.5 * tallies[0].elements


def test_the_groups_are_the_constructors_alone() -> None:
    assert LTKDLoss([0, 0, 1, 2]).state_dict() == {}


def test_the_logits_say_on_which_device_the_loss_is() -> None:
    """Also where nobody moved the loss there; a fake GPU has shapes and devices, no numbers."""
    loss = LTKDLoss([0, 0, 1, 1, 2, 2])
    with FakeTensorMode(allow_non_fake_inputs=True):
        student = torch.randn(4, 6, device="cuda", requires_grad=True)
        value = loss(student, torch.randn(4, 6, device="cuda"))
        assert (value.device.type, value.shape) == ("cuda", ())
