"""Augmentation as a finite set of views, so that (image, view) names an exact input."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..files import sha256


@dataclass(frozen=True)
class Views:
    """Shifts by up to ``shift`` pixels (a random crop after zero padding), with or without a flip.

    A view is an integer in [0, count): dy * (2 shift + 1) + dx, plus (2 shift + 1)^2 when flipped.
    CIFAR's standard augmentation (padding 4, crop 32, flip) is shift 4 with flips: 162 views.
    """

    shift: int
    flip: bool

    @property
    def count(self) -> int:
        return (2 * self.shift + 1) ** 2 * (2 if self.flip else 1)

    def pad(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, 3, H + 2 shift, W + 2 shift], black around; done once."""
        return torch.nn.functional.pad(images, [self.shift] * 4)

    def take(self, padded: Tensor, index: Tensor, view: Tensor) -> Tensor:
        """The images ``index`` [B] as seen in ``view`` [B]: uint8 [B, 3, H, W], one gather."""
        side = 2 * self.shift + 1
        h, w = padded.shape[2] - 2 * self.shift, padded.shape[3] - 2 * self.shift
        flipped, place = view // side**2, view % side**2
        rows = (place // side)[:, None] + torch.arange(h, device=view.device)
        columns = torch.arange(w, device=view.device).expand(len(view), w)
        columns = torch.where(flipped[:, None] == 1, w - 1 - columns, columns)
        columns = (place % side)[:, None] + columns
        channels = torch.arange(padded.shape[1], device=view.device)
        return padded[
            index[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]


@dataclass(frozen=True)
class Crops:
    """ImageNet's augmentation, a random part resized to ``size``, or its mirror: a view is a seed.

    The draw depends on image and view only, so that it does not matter which process makes it.
    """

    size: int
    count: ClassVar[int] = 2**31 - 1

    def take(self, image: Any, index: int, view: int) -> Any:
        """The PIL image number ``index`` as seen in ``view``, a PIL image of size x size."""
        from torchvision.transforms import v2

        with torch.random.fork_rng(devices=[]):
            # Hashed, because torch seeds this generator with 32 bits only. Not torch.manual_seed:
            # that would seed the GPU's generators too.
            torch.default_generator.manual_seed(int(sha256(f"crop {index} {view}")[:8], 16))
            return v2.RandomHorizontalFlip()(v2.RandomResizedCrop(self.size)(image))


def standard_views(size: int) -> Views | Crops:
    """The field's augmentation at ``size`` pixels: CIFAR's, in proportion, or at 224 ImageNet's."""
    return Crops(size) if size == 224 else Views(size // 8, flip=True)
