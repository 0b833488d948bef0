"""Chen et al., Distilling Knowledge via Knowledge Review (ReviewKD, CVPR 2021): ABF and HCL."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltkd.groups import whole_numbers
from ltkd.losses.common import at_least_float32, average_pool, floating, full_precision, raised


class ReviewKDLoss(nn.Module):
    """sum over levels of HCL(fusion(student levels), teacher level), each a mean over its entries.

    student_channels, teacher_channels  widths, shallow to deep, the pooled level last
    teacher_sizes                       heights (= widths) of the teacher's levels; as sizes never
                                        grow with depth, either order names the same levels
    student_features, teacher_features  a tensor [B, width, H, H] a level, shallow to deep; the
                                        pooled one [B, width] or [B, width, 1, 1]; teacher detached
    returns                             scalar, float32 or float64

    The fusion is a network: its parameters train with the student and are thrown away after, and
    it follows the caller's autocast; the comparison does not. Middle width min(512, deepest
    student width); the original code takes 256 for ResNet50-MobileNetV1.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        teacher_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        student_channels = whole_numbers("student_channels", student_channels).tolist()
        teacher_channels = whole_numbers("teacher_channels", teacher_channels).tolist()
        teacher_sizes = whole_numbers("teacher_sizes", teacher_sizes).tolist()
        for name, values in (
            ("student_channels", student_channels),
            ("teacher_channels", teacher_channels),
            ("teacher_sizes", teacher_sizes),
        ):
            if len(values) != len(student_channels) or min(values) < 1:
                raise ValueError(
                    f"{name} is {values}; it must hold a whole number >= 1 for each of the "
                    f"{len(student_channels)} levels of student_channels"
                )
        self.teacher_sizes = sorted(teacher_sizes, reverse=True)
        middle = min(512, student_channels[-1])
        deepest = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            Fusion(s, middle, t, attention=level < deepest)
            for level, (s, t) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student_features: list[Tensor], teacher_features: list[Tensor]) -> Tensor:
        levels = len(self.fusions)
        for name, given in (
            ("student_features", student_features),
            ("teacher_features", teacher_features),
        ):
            if not isinstance(given, list | tuple):
                of = type(given).__name__
                raise ValueError(f"{name} is of type {of}; it must be a list of {levels} tensors")
            if len(given) != levels:
                raise ValueError(f"{name} has {len(given)} levels; it must have {levels}")
        deeper: Tensor | None = None
        losses = []
        for level in reversed(range(levels)):
            student = as_map(f"student_features[{level}]", student_features[level])
            teacher = as_map(f"teacher_features[{level}]", teacher_features[level])
            # Features of a bf16 network meet float32 parameters; under autocast both go down again.
            student = at_least_float32(student)
            if self.training and len(student) * min(student.shape[-1], *self.teacher_sizes) == 1:
                raise ValueError(
                    f"student_features[{level}] has shape {list(student.shape)}; in training the "
                    "fusion's batch norm needs more than one value a channel: a batch of 2 or more"
                )
            fused, deeper = self.fusions[level](student, deeper, self.teacher_sizes[level])
            if fused.shape != teacher.shape:
                raise ValueError(
                    f"teacher_features[{level}] has shape {list(teacher.shape)}; by "
                    f"teacher_channels and teacher_sizes it must be {list(fused.shape)}"
                )
            losses.append(hierarchical_context_loss(fused, teacher))
        return torch.stack(losses).sum()

    def extra_repr(self) -> str:
        return f"teacher_sizes={self.teacher_sizes}"


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of one level.

    student  [B, S, h, h]
    deeper   [B, M, H', H'] from the next deeper level, or None at the deepest
    size     H of the teacher's level
    returns  [B, T, H, H] for the comparison and [B, M, H, H] for the next level

    x = BN(1x1 conv(student)); with a deeper level y, upsampled: x a_0 + y a_1, where the maps
    a = sigmoid(1x1 conv(concat(x, y))); resized to the teacher's size H, this goes to the next
    level, and BN(3x3 conv) of it is compared with the teacher. No ReLU.
    """

    def __init__(self, student: int, middle: int, teacher: int, attention: bool) -> None:
        super().__init__()
        narrow = nn.Conv2d(student, middle, 1, bias=False)
        widen = nn.Conv2d(middle, teacher, 3, padding=1, bias=False)
        for conv in (narrow, widen):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.project = nn.Sequential(narrow, nn.BatchNorm2d(middle))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if attention else None
        self.output = nn.Sequential(widen, nn.BatchNorm2d(teacher))

    def forward(self, student: Tensor, deeper: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
        x = self.project(student)
        if self.attention is not None and deeper is not None:
            y = F.interpolate(deeper, x.shape[-2:], mode="nearest")
            a = self.attention(torch.cat([x, y], 1)).sigmoid()
            x = x * a[:, :1] + y * a[:, 1:]
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="nearest")
        return self.output(x), x


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL = [MSE + 1/2 MSE at 4x4 + 1/4 at 2x2 + 1/8 at 1x1] / sum of the weights used.

    student, teacher  [B, C, H, W]
    returns           scalar, float32 or float64

    Average-pooled levels; one not smaller than the map is skipped without using up a weight.
    """
    with full_precision(student):
        student, teacher = raised(student, teacher)
        # Autograd cannot save what inference_mode made, nor dynamo ask for it.
        if not torch.compiler.is_compiling() and teacher.is_inference():
            teacher = teacher.clone()
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for size in (side for side in (4, 2, 1) if side < student.shape[-2]):
            weight /= 2
            total += weight
            pooled = [average_pool(m, size) for m in (student, teacher)]
            loss = loss + weight * F.mse_loss(pooled[0], pooled[1])
        return loss / total


def as_map(name: str, feature: Tensor) -> Tensor:
    """A pooled feature [B, D] as the map [B, D, 1, 1]; maps unchanged."""
    given = list(floating(name, feature).shape)
    if len(given) not in (2, 4) or 0 in given:
        raise ValueError(f"{name} has shape {given}; it must be [B, D] or [B, D, H, W], none 0")
    return feature[:, :, None, None] if feature.dim() == 2 else feature
