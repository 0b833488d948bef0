"""ReviewKD: reported parameter counts, and the whole forward pass from elementary operations."""

import literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltkd.losses import ReviewKDLoss
from ltkd.losses.common import average_pool
from ltkd.losses.reviewkd import hierarchical_context_loss

R4, V, W2 = (64, 128, 256, 256), (128, 256, 512, 512, 512), (32, 64, 128, 128)
SV1, MV2 = (240, 480, 960, 960), (12, 16, 48, 160, 1280)
R50 = (256, 512, 1024, 2048, 2048)
PAIRS = {
    "R32x4-R8x4": (R4, R4, (1, 8, 16, 32), 1_808_774),
    "R32x4-SV1": (SV1, R4, (1, 8, 16, 32), 4_607_366),
    "VGG13-VGG8": (V, V, (1, 4, 4, 8, 16), 9_847_560),
    "VGG13-MV2": (MV2, V, (1, 4, 4, 8, 16), 9_640_712),
    "WRN40-2-WRN40-1": ((16, 32, 64, 64), W2, (1, 8, 16, 32), 216_006),
    "WRN40-2-SV1": (SV1, W2, (1, 8, 16, 32), 2_984_646),
    "R50-MV2": (MV2, R50, (1, 4, 8, 16, 32), 27_933_192),
    "R34-R18": ((64, 128, 256, 512, 512), (64, 128, 256, 512, 512), (1, 7, 14, 28, 56), 7_552_904),
    "R50-MV1": ((128, 256, 512, 1024, 1024), R50, (1, 7, 14, 28, 56), 28_664_328),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_fusion_parameters(pair) -> None:
    student, teacher, sizes, expected = pair
    with torch.device("meta"):
        criterion = ReviewKDLoss(student, teacher, sizes)
    assert sum(p.numel() for p in criterion.parameters()) == expected


def features(widths, sizes, batch: int = 2, dtype=torch.float64) -> list[Tensor]:
    maps = [torch.randn(batch, w, s, s, dtype=dtype) for w, s in zip(widths, sizes, strict=True)]
    return [*maps[:-1], maps[-1].flatten(1)]


def pooled_mse(student: Tensor, teacher: Tensor, size: int) -> Tensor:
    squares = []
    for b in range(student.shape[0]):
        for c in range(student.shape[1]):
            s, t = literal.pool(student[b, c], size), literal.pool(teacher[b, c], size)
            squares += [(x - y) ** 2 for x, y in zip(s, t, strict=True)]
    return sum(squares) / len(squares)


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    side = student.shape[-1]
    full = ((student - teacher) ** 2).mean()
    if side == 1:
        return full
    if side == 2:
        return (full + pooled_mse(student, teacher, 1) / 2) / 1.5
    if side <= 4:
        parts = [pooled_mse(student, teacher, k) for k in (2, 1)]
        return (full + parts[0] / 2 + parts[1] / 4) / 1.75
    parts = [pooled_mse(student, teacher, k) for k in (4, 2, 1)]
    return (full + parts[0] / 2 + parts[1] / 4 + parts[2] / 8) / 1.875


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8, 14, 16, 28, 32, 56])
def test_hierarchical_context_loss(side: int) -> None:
    """Pooled levels 4, 2, 1; those not smaller than the map use up no weight."""
    torch.manual_seed(side)
    s, t = torch.randn(2, 2, 3, side, side, dtype=torch.float64)
    s.requires_grad_()
    loss, expected = hierarchical_context_loss(s, t), hcl(s, t)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    got, want = (torch.autograd.grad(x, s)[0] for x in (loss, expected))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)
    if side <= 8:
        assert torch.autograd.gradcheck(lambda x: hierarchical_context_loss(x, t), (s,))


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


def conv1(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bihw,oi->bohw", x, weight[:, :, 0, 0])


def conv3(x: Tensor, weight: Tensor) -> Tensor:
    b, _, h, w = x.shape
    padded = x.new_zeros(b, x.shape[1], h + 2, w + 2)
    padded[:, :, 1:-1, 1:-1] = x
    return sum(
        torch.einsum("bihw,oi->bohw", padded[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )


def nearest(x: Tensor, size: int) -> Tensor:
    index = [i * x.shape[-1] // size for i in range(size)]
    return x[:, :, index][:, :, :, index]


def test_forward_from_elementary_operations() -> None:
    """Widths and sizes differ between the networks, as with VGG13-MobileNetV2."""
    torch.manual_seed(0)
    student_sizes, teacher_sizes = (8, 4, 2, 1), (8, 4, 4, 1)
    criterion = ReviewKDLoss((3, 4, 6, 5), (2, 3, 4, 4), teacher_sizes).double()
    with torch.no_grad():
        for p in criterion.parameters():
            p.normal_()
    student, teacher = features((3, 4, 6, 5), student_sizes), features((2, 3, 4, 4), teacher_sizes)
    p = dict(criterion.named_parameters())
    expected, deeper = 0.0, None
    for level in (3, 2, 1, 0):
        name = f"fusions.{level}"
        x, target = student[level], teacher[level]
        if level == 3:
            x, target = x[:, :, None, None], target[:, :, None, None]
        x = conv1(x, p[f"{name}.project.0.weight"])
        x = batch_norm(x, p[f"{name}.project.1.weight"], p[f"{name}.project.1.bias"])
        if deeper is not None:
            y = nearest(deeper, student_sizes[level])
            a = conv1(torch.cat([x, y], 1), p[f"{name}.attention.weight"])
            a = 1 / (1 + torch.exp(-a - p[f"{name}.attention.bias"][:, None, None]))
            x = x * a[:, 0:1] + y * a[:, 1:2]
        deeper = nearest(x, teacher_sizes[level])
        out = conv3(deeper, p[f"{name}.output.0.weight"])
        out = batch_norm(out, p[f"{name}.output.1.weight"], p[f"{name}.output.1.bias"])
        expected = expected + hcl(out, target)
    torch.testing.assert_close(criterion(student, teacher), expected, rtol=1e-12, atol=0)
    # The order in which sizes are listed does not matter, and a pooled feature may be a 1x1 map.
    other = ReviewKDLoss((3, 4, 6, 5), (2, 3, 4, 4), teacher_sizes[::-1]).double()
    other.load_state_dict(criterion.state_dict())
    as_maps = [x if x.dim() == 4 else x[:, :, None, None] for x in student]
    torch.testing.assert_close(other(as_maps, teacher), expected, rtol=1e-12, atol=0)


def test_gradients_reach_fusion_and_student_not_teacher() -> None:
    torch.manual_seed(0)
    criterion = ReviewKDLoss((3, 4, 4), (2, 3, 3), (4, 2, 1)).double()
    student, teacher = features((3, 4, 4), (4, 2, 1), 3), features((2, 3, 3), (4, 2, 1), 3)
    for x in (*student, *teacher):
        x.requires_grad_()
    criterion(student, teacher).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)
    assert all(x.grad is None for x in teacher)
    assert all(p.grad is not None for p in criterion.parameters())
    with torch.inference_mode():
        cut = [x.clone() for x in teacher]
    criterion(student, cut).backward()
    criterion.eval()  # running statistics fixed: the loss is a function of its inputs
    fixed = [x.detach() for x in teacher]
    assert torch.autograd.gradcheck(lambda *s: criterion(list(s), fixed), tuple(student))


def test_initialisation() -> None:
    """kaiming_uniform(a = 1): uniform within sqrt(3 / fan_in); batch norm 1 and 0."""
    torch.manual_seed(0)
    criterion = ReviewKDLoss((64, 64), (32, 32), (4, 1))
    for name, p in criterion.named_parameters():
        if name.endswith((".project.0.weight", ".output.0.weight")):
            bound = (3 / p[0].numel()) ** 0.5
            assert p.abs().max() <= bound
            assert abs(p.std() - bound / 3**0.5) < 0.05 * bound
        elif ".1." in name:
            assert (p == (1 if name.endswith("weight") else 0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_low_precision_features(dtype: torch.dtype, autocast: bool, scale: float) -> None:
    torch.manual_seed(0)
    criterion = ReviewKDLoss((3, 4, 4), (2, 3, 3), (4, 2, 1))
    student = [(x * scale).to(dtype).requires_grad_() for x in features((3, 4, 4), (4, 2, 1), 3)]
    teacher = [(x * scale).to(dtype) for x in features((2, 3, 3), (4, 2, 1), 3)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = criterion(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)


def test_errors() -> None:
    for message, arguments in {
        r"teacher_channels is \[2\]; it must hold a whole number >= 1 for": ((3, 4), (2,), (2, 1)),
        r"teacher_sizes is \[2, 0\]": ((3, 4), (2, 2), (2, 0)),
        r"teacher_sizes is torch.float32": ((3, 4), (2, 2), (1.5, 1)),
        "teacher_sizes is a list; it must be whole numbers": ((3, 4), (2, 2), ["8", "1"]),
        "student_channels has shape": ((), (), ()),
    }.items():
        with pytest.raises(ValueError, match=message):
            ReviewKDLoss(*arguments)
    ReviewKDLoss(torch.tensor([3, 4]), (2, 3), (4, 1))
    criterion = ReviewKDLoss((3, 4), (2, 3), (4, 1))
    assert "teacher_sizes=[4, 1]" in repr(criterion)
    student = features((3, 4), (4, 1), dtype=torch.float32)
    teacher = features((2, 3), (4, 1), dtype=torch.float32)
    with pytest.raises(ValueError, match="student_features has 1 levels; it must have 2"):
        criterion(student[:1], teacher)
    with pytest.raises(ValueError, match=r"teacher_features\[0\] has shape \[2, 2, 3, 3\]"):
        criterion(student, [teacher[0][..., :3, :3], teacher[1]])
    with pytest.raises(ValueError, match=r"student_features\[1\] has shape \[0, 4\]"):
        criterion([x[:0] for x in student], [x[:0] for x in teacher])
    says = "it must be a tensor of a floating dtype"
    with pytest.raises(ValueError, match=rf"student_features\[1\] is of type ndarray; {says}"):
        criterion([student[0], student[1].numpy()], teacher)
    with pytest.raises(ValueError, match=rf"teacher_features\[0\] is .* torch.bool; {says}"):
        criterion(student, [teacher[0] > 0, teacher[1]])
    with pytest.raises(ValueError, match="teacher_features is of type NoneType; it must be a list"):
        criterion(student, None)
    one = [x[:1] for x in student], [x[:1] for x in teacher]
    with pytest.raises(ValueError, match=r"student_features\[1\] has .*a batch of 2 or more"):
        criterion(*one)
    assert criterion.eval()(*one).isfinite()


def test_one_graph_when_compiled() -> None:
    student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(hierarchical_context_loss, fullgraph=True, backend="eager")
    assert compiled(student, teacher) == hierarchical_context_loss(student, teacher)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("side", "size"), [(32, 4), (8, 2), (4, 2), (7, 4), (3, 2), (8, 1), (4, 4)]
)
def test_average_pool_is_adaptive_pooling_to_the_bit(side, size, channels_last):
    """In the gradient too: records made with torch's own pooling stay the same numbers."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    draw = torch.Generator().manual_seed(side + size)
    x, up = (torch.randn(5, 6, n, n, generator=draw) for n in (side, size))
    ours, torchs = (x.to(memory_format=layout, copy=True).requires_grad_() for _ in range(2))
    pooled, adaptive = average_pool(ours, size), F.adaptive_avg_pool2d(torchs, size)
    assert torch.equal(pooled, adaptive)
    pooled.backward(up), adaptive.backward(up)
    assert torch.equal(ours.grad, torchs.grad)
