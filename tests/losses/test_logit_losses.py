"""What holds for every loss on logits: literal loops, gradients, precision, limits, errors."""

import copy
import pickle

import literal
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ltkd.losses import DISTLoss, DKDLoss, KDLoss, LTKDLoss
from ltkd.losses.common import full_precision
from ltkd.losses.dist import pearson
from ltkd.losses.dkd import split_target

CLASSES = 10
GROUPS = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


def targets(batch: int) -> Tensor:
    return torch.arange(batch) * 7 % CLASSES


class Labelled(nn.Module):
    """DKD with labels of its own, so that it is called as the others are."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = DKDLoss()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher, targets(6 if student is None else len(student)))


LOSSES: dict[str, nn.Module] = {
    "kd": KDLoss(),
    "dkd": Labelled(),
    "dist": DISTLoss(),
    "ltkd": LTKDLoss(GROUPS),
    "ltkd_biased": LTKDLoss(GROUPS, rebalance=False),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def logits(batch: int = 6, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, batch, classes, dtype=torch.float64, generator=generator)
    return (draw[0] * 2).requires_grad_(), draw[1] * 3


def assert_same(loss: Tensor, expected: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    got, want = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


shapes = pytest.mark.parametrize(("batch", "classes"), [(1, 2), (4, 7), (6, 10), (9, 3)])


@shapes
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_against_a_literal_loop(batch: int, classes: int, temperature: float) -> None:
    student, teacher = logits(batch, classes, seed=classes)
    loss = KDLoss(temperature)(student, teacher)
    assert_same(loss, literal.kd(student, teacher, temperature), student)


@shapes
@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (0.3, 0.5, 1)])
def test_dkd_against_a_literal_loop(batch, classes, alpha, beta, temperature) -> None:
    student, teacher = logits(batch, classes, seed=classes)
    labels = torch.arange(batch) % classes
    loss = DKDLoss(alpha, beta, temperature)(student, teacher, labels)
    expected = literal.dkd(student, teacher, labels, alpha, beta, temperature)
    assert_same(loss, expected, student)


@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (4, 7), (6, 10), (9, 3)])
@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(2, 2, 4), (1, 0.5, 1)])
def test_dist_against_a_literal_loop(batch, classes, beta, gamma, temperature) -> None:
    student, teacher = logits(batch, classes, seed=classes)
    loss = DISTLoss(beta, gamma, temperature)(student, teacher)
    assert_same(loss, literal.dist(student, teacher, beta, gamma, temperature), student)


def test_dkd_terms_recompose_kl() -> None:
    """KL = TCKD + (1 - pT_target) NCKD, a sample at a time."""
    student, teacher = logits(1)
    for seed in range(20):
        student, teacher = logits(1, seed=seed)
        label = torch.tensor([seed % CLASSES])
        tckd = DKDLoss(1, 0, 1)(student, teacher, label)
        nckd = DKDLoss(0, 1, 1)(student, teacher, label)
        rest = 1 - teacher.softmax(1)[0, label[0]]
        torch.testing.assert_close(
            tckd + rest * nckd, KDLoss(1)(student, teacher), rtol=0, atol=1e-12
        )


def test_dkd_removes_the_target_exactly() -> None:
    """NCKD ignores the target's logit, be it far larger than the 1000 that is customary."""
    student, teacher = logits()
    labels = targets(6)
    moved = student.detach().scatter_add(1, labels[:, None], torch.full((6, 1), 5e3).double())
    nckd = DKDLoss(0, 1)
    assert nckd(moved, teacher, labels) == nckd(student, teacher, labels)
    pair, rest = split_target(student, labels)
    one_hot = 2e4 * torch.eye(CLASSES, dtype=torch.float64)[labels]  # all of it on the target
    told = nckd(student, one_hot, labels)
    torch.testing.assert_close(told, nckd(student, torch.zeros_like(one_hot), labels))
    assert pair.shape == (6, 2)
    assert rest.shape == (6, CLASSES - 1)


def test_dist_invariances() -> None:
    """Correlation ignores a positive scale and a shift of either side; its sign follows both."""
    a, b = (torch.rand(6, CLASSES, dtype=torch.float64) for _ in range(2))
    for dim in (0, 1):
        r = pearson(a, b, dim)
        torch.testing.assert_close(pearson(3 * a + 2, 0.5 * b - 1, dim), r, rtol=0, atol=1e-6)
        bare = [pearson(x, y, dim, eps=0.0) for x, y in ((a, b), (3 * a + 2, 0.5 * b - 1))]
        torch.testing.assert_close(*bare, rtol=0, atol=1e-12)
        torch.testing.assert_close(pearson(-a, b, dim), -r, rtol=0, atol=1e-12)
        torch.testing.assert_close(pearson(a, a, dim), torch.ones_like(r), rtol=0, atol=1e-6)
        vectors = zip(a.unbind(1 - dim), b.unbind(1 - dim), strict=True)
        exact = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in vectors])
        torch.testing.assert_close(r, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dim", "size"), [(0, 6), (1, CLASSES)])
def test_dist_does_not_see_the_order_of_samples_or_of_classes(dim: int, size: int) -> None:
    student, teacher = logits()
    order = torch.arange(size).roll(2).flip(0)
    moved = DISTLoss()(student.index_select(dim, order), teacher.index_select(dim, order))
    assert_same(moved, DISTLoss()(student, teacher), student)


def test_dist_of_one_sample_has_no_columns_to_correlate() -> None:
    """A column of one is constant: 1 for the intra-class term, and the row's own correlation."""
    student, teacher = logits(1)
    row = torch.corrcoef(torch.cat([(x / 4).softmax(1) for x in (student, teacher)]))[0, 1]
    loss = DISTLoss()(student, teacher)
    torch.testing.assert_close(loss, 16 * (2 * (1 - row) + 2), rtol=0, atol=1e-4)


def test_dist_of_a_constant_row_is_finite() -> None:
    student = torch.zeros(3, CLASSES, requires_grad=True)  # uniform rows, constant columns
    loss = DISTLoss()(student, torch.randn(3, CLASSES))
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(64.0))  # T^2 (2 + 2), no correlation
    assert student.grad is not None
    assert student.grad.isfinite().all()


@each_loss
def test_gradcheck(loss) -> None:
    student, teacher = logits(3)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


@each_loss
def test_constants_added_to_a_sample_change_nothing(loss) -> None:
    student, teacher = logits()
    shift = torch.linspace(-50, 50, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        loss(student + shift, teacher - 3 * shift), loss(student, teacher), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "ltkd_biased"])
def test_student_equal_to_teacher_is_zero_with_zero_gradient(name: str) -> None:
    student, _ = logits()
    loss = LOSSES[name](student, student.detach().clone())
    (gradient,) = torch.autograd.grad(loss, student)
    tolerance = 1e-4 if name == "dist" else 1e-13  # DIST: the 1e-8 in its denominator
    assert abs(loss) < tolerance
    assert gradient.abs().max() < tolerance


def test_ltkd_of_student_equal_to_teacher_is_the_rebalancing_alone() -> None:
    student, _ = logits()
    teacher = student.detach().clone()
    assert LTKDLoss(GROUPS, alpha=0)(student, teacher) == 0
    assert LTKDLoss(GROUPS, beta=0)(student, teacher) > 1e-3


@each_loss
def test_teacher_gets_no_gradient(loss) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


def extreme(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    signs = torch.tensor([1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 2, (2, 6, CLASSES), generator=generator)
    student, teacher = (signs[draw] * 1e4).to(dtype)
    return student.clone().requires_grad_(), teacher


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_finite_at_huge_logits(loss, dtype: torch.dtype, autocast: bool) -> None:
    """+-1e4, teacher and student at odds, in the value and in the gradient."""
    for opposed in (False, True):
        student, teacher = extreme(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(student, -student.detach() if opposed else teacher)
        value.backward()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def test_huge_logits_have_the_right_value() -> None:
    """Teacher all on class 0, student all on class 9: KL = 2e4 / T, cross-group as well."""
    teacher = torch.full((2, CLASSES), -1e4)
    teacher[:, 0] = 1e4
    student = teacher.flip(1)
    torch.testing.assert_close(KDLoss(4)(student, teacher), torch.tensor(16 * 5e3))
    biased = LTKDLoss(GROUPS, beta=0, rebalance=False)(student, teacher)
    torch.testing.assert_close(biased, torch.tensor(16 * 5e3), rtol=1e-3, atol=0)


@each_loss
def test_one_hot_teacher(loss) -> None:
    """Logits of -inf everywhere but at one class: a probability of exactly 0 contributes 0."""
    student, _ = logits()
    teacher = torch.full((6, CLASSES), -torch.inf, dtype=torch.float64)
    teacher[torch.arange(6), (targets(6) + 1) % CLASSES] = 0  # DKD needs mass off the target
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_one_hot_teacher_is_cross_entropy() -> None:
    student, _ = logits()
    teacher = torch.full((6, CLASSES), -torch.inf, dtype=torch.float64)
    teacher[torch.arange(6), targets(6)] = 0
    expected = torch.nn.functional.cross_entropy(student, targets(6))
    torch.testing.assert_close(KDLoss(1)(student, teacher), expected, rtol=0, atol=1e-13)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_raised_first(loss, dtype: torch.dtype) -> None:
    """Autocast or not, the result is that of the same numbers held in float32."""
    student, teacher = (x.detach().to(dtype) for x in logits())
    expected = loss(student.float(), teacher.float())
    assert loss(student, teacher).equal(expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(student, teacher).equal(expected)
    torch.testing.assert_close(
        expected.double(), loss(student.double(), teacher.double()), rtol=1e-5, atol=1e-5
    )
    mixed = loss(student.double(), teacher)
    assert mixed.dtype == torch.float64


WRONG = {
    "an array": (np.zeros((6, CLASSES)), "of type ndarray"),
    "a list": ([[0.0] * CLASSES] * 6, "of type list"),
    "nothing": (None, "of type NoneType"),
    "whole numbers": (torch.zeros(6, CLASSES, dtype=torch.int64), r"\[6, 10\] torch.int64"),
    "yes and no": (torch.zeros(6, CLASSES, dtype=torch.bool), r"\[6, 10\] torch.bool"),
}


@each_loss
@pytest.mark.parametrize("case", WRONG)
def test_kinds_are_checked(loss, case: str) -> None:
    wrong, given = WRONG[case]
    says, right = f"{given}; it must be a tensor of a floating dtype", torch.zeros(6, CLASSES)
    with pytest.raises(ValueError, match=f"student_logits is {says}"):
        loss(wrong, right)
    with pytest.raises(ValueError, match=f"teacher_logits is {says}"):
        loss(right, wrong)


@each_loss
def test_swapped_arguments_are_noticed(loss) -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match="are they swapped"):
        loss(teacher, student)
    with torch.no_grad():  # where nothing is trained, they may well be
        assert loss(teacher, student).isfinite()


@each_loss
@pytest.mark.parametrize(
    "other",
    [
        lambda loss: torch.compile(loss, backend="eager", fullgraph=True),
        copy.deepcopy,
        lambda loss: pickle.loads(pickle.dumps(loss)),
    ],
    ids=["compiled", "copied", "pickled"],
)
def test_compiled_copied_and_pickled_it_is_the_same(loss, other) -> None:
    student, teacher = logits()
    value, same = loss(student, teacher), other(loss)(student, teacher)
    assert torch.equal(value, same)
    one, two = (torch.autograd.grad(x, student)[0] for x in (value, same))
    assert torch.equal(one, two)


@each_loss
def test_shapes_are_checked(loss) -> None:
    with pytest.raises(ValueError, match=r"student_logits has shape \[0, 10\]"):
        loss(torch.zeros(0, CLASSES), torch.zeros(0, CLASSES))
    with pytest.raises(ValueError, match=r"student_logits has shape \[10\]"):
        loss(torch.zeros(CLASSES), torch.zeros(CLASSES))
    with pytest.raises(ValueError, match=r"teacher_logits has shape \[6, 9\]; .*\[6, 10\]"):
        loss(torch.zeros(6, CLASSES), torch.zeros(6, CLASSES - 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"targets is \[5\] torch.int64; it must be \[6\]"),
        (torch.zeros(6), r"targets is \[6\] torch.float32"),
        (torch.zeros(6, 1, dtype=torch.int64), r"targets is \[6, 1\]"),
        ([0] * 6, r"targets is of type list; it must be \[6\] integer labels"),
    ],
)
def test_dkd_checks_its_targets(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DKDLoss()(torch.zeros(6, CLASSES), torch.zeros(6, CLASSES), labels)
    with pytest.raises(ValueError, match="1 class"):
        DKDLoss()(torch.zeros(6, 1), torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (KDLoss, ()),
        (DKDLoss, ("alpha", "beta")),
        (DISTLoss, ("beta", "gamma")),
        (lambda **k: LTKDLoss(GROUPS, **k), ("alpha", "beta")),
    ],
)
def test_hyperparameters_are_checked(make, names: tuple[str, ...]) -> None:
    for bad in (float("nan"), float("inf"), -1.0, "x", "4", True, None):
        for name in (*names, "temperature"):
            with pytest.raises(ValueError, match=f"{name} is {bad!r}; it must be a finite number"):
                make(**{name: bad})
    with pytest.raises(ValueError, match=r"temperature is 0; it must be a finite number > 0"):
        make(temperature=0)
    text = repr(make(**dict.fromkeys(names, 0), temperature=2.5))
    assert "temperature=2.5" in text
    assert all(f"{name}=0" in text for name in names)


def test_autocast_is_off_inside() -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
