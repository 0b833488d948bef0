"""CAT-KD against a literal loop, and class activation maps against the classifier."""

import literal
import pytest
import torch

from ltkd.losses import CATKDLoss


def maps(student: tuple[int, ...], teacher: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(student, dtype=torch.float64, generator=generator)
    return s.requires_grad_(), torch.randn(teacher, dtype=torch.float64, generator=generator) * 2


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("student", "teacher", "pool"),
    [
        ((2, 3, 8, 8), (2, 3, 8, 8), 2),
        ((2, 3, 2, 2), (2, 3, 4, 4), 2),
        ((1, 2, 7, 7), (1, 2, 7, 7), 4),
    ],
)
def test_value_and_gradient_against_a_literal_loop(student, teacher, pool, normalize) -> None:
    s, t = maps(student, teacher)
    loss = CATKDLoss(15.0, pool, normalize)(s, t)
    expected = literal.catkd(s, t, 15.0, pool, normalize)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    got, want = (torch.autograd.grad(x, s)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: CATKDLoss(15.0, pool, normalize)(x, t), (s,))


def test_normalised_maps_ignore_their_scale() -> None:
    s, t = maps((2, 3, 4, 4), (2, 3, 4, 4))
    a, b = CATKDLoss(1, 2, True)(s, t), CATKDLoss(1, 2, True)(5 * s, 0.1 * t)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    torch.testing.assert_close(CATKDLoss(3, 2, True)(s, t), 3 * a)
    assert CATKDLoss(1, 2, True)(s, s.detach()) == 0


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_finite_and_in_float32(normalize: bool, scale: float, dtype: torch.dtype) -> None:
    s, t = (x.detach().to(dtype) * scale for x in maps((2, 3, 4, 4), (2, 3, 4, 4)))
    s.requires_grad_()
    t.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = CATKDLoss(600, 4, normalize)(s, t)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert t.grad is None
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_errors() -> None:
    for pool in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"pool is {pool!r}"):
            CATKDLoss(1, pool, False)
    with pytest.raises(ValueError, match="beta is nan"):
        CATKDLoss(float("nan"), 2, False)
    with pytest.raises(ValueError, match="normalize is 1; it must be True or False"):
        CATKDLoss(1.5, 2, 1)
    criterion = CATKDLoss(1.5, 2, False)
    assert repr(criterion) == "CATKDLoss(beta=1.5, pool=2, normalize=False)"
    s, t = maps((2, 3, 4, 4), (2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"student_maps has shape \[0, 3, 4, 4\]"):
        criterion(s[:0], t[:0])
    with pytest.raises(
        ValueError, match=r"teacher_maps has shape \[2, 2, 4, 4\]; .*\[2, 3, H, W\]"
    ):
        criterion(s, t[:, :2])
    says = "it must be a tensor of a floating dtype"
    with pytest.raises(ValueError, match=f"student_maps is of type ndarray; {says}"):
        criterion(s.detach().numpy(), t)
    with pytest.raises(ValueError, match=rf"student_maps is \[2, 3, 4, 4\] torch.int64; {says}"):
        criterion(s.long(), t)
    with pytest.raises(ValueError, match=f"teacher_maps is of type NoneType; {says}"):
        criterion(s, None)
    with pytest.raises(ValueError, match="are they swapped"):
        criterion(t, s)
