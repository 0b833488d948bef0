"""The exponential long tail (Cui et al., CVPR 2019) cut out of a balanced training set."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import canonical, data_root, many, sha256
from ..groups import class_groups, whole_numbers
from ..params import FILE_SETS, RECIPES, Images, nearest
from . import folders
from .sources import DataError, source, source_sha256
from .views import Crops, Views, standard_views

BLOCK = 4096  # images at once: taking a view makes 32 bytes of indices a byte


def stream(purpose: str, *keys: int) -> np.random.RandomState:
    """A random stream of its own for each purpose and key.

    Nothing is drawn from a shared generator, so adding a run or a method changes no other, and a
    run that is resumed needs no generator's state. RandomState because numpy has frozen its
    streams: they are the same on every platform and in every later version.
    """
    digest = bytes.fromhex(sha256(canonical([purpose, *keys])))
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def long_tailed_counts(n_max: int, num_classes: int, gamma: float) -> Tensor:
    """Images kept of each class, class 0 the most: int(n_max * (1 / gamma)^(c / (C - 1))).

    Returns a LongTensor [C]. gamma is the imbalance factor, largest over smallest class.
    Raises ValueError for gamma < 1 or infinite, n_max < 1 or fewer than two classes.
    """
    if not isinstance(gamma, Real) or not 1 <= gamma < math.inf:
        raise ValueError(
            f"gamma = {gamma!r}: largest over smallest class, so it is finite and at least 1"
        )
    if n_max < 1 or num_classes < 2:
        raise ValueError(
            f"n_max = {n_max}, num_classes = {num_classes}: at least 1 image and 2 classes"
        )
    last = num_classes - 1
    kept = [int(n_max * (1 / gamma) ** (c / last)) for c in range(num_classes)]
    return torch.tensor(kept, device="cpu")


def long_tailed_indices(
    labels: np.ndarray | Sequence[int],
    counts: Sequence[int] | Tensor,
    split_seed: int,
    purpose: str = "split",
) -> np.ndarray:
    """Which training images are kept, sorted: int64 [sum of counts], drawn without replacement.

    One seeded generator permutes each class whole, so that a smaller tail is a subset of a larger.
    Raises ValueError where a class has fewer images than are asked of it, a label has no count, or
    counts are not whole numbers >= 0.
    """
    draw, labels = stream(purpose, split_seed), np.asarray(labels)
    kept, asked = [], whole_numbers("counts", counts).tolist()
    if len(labels) and labels.max() >= len(asked):
        raise ValueError(f"counts has {len(asked)} classes, but there is a label {labels.max()}")
    for c, count in enumerate(asked):
        members = np.flatnonzero(labels == c)
        if count > len(members):
            raise ValueError(f"class {c} has {len(members)} images, but {count} are asked for")
        kept.append(draw.permutation(members)[:count])
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True, eq=False)
class LongTailed:
    """A long-tailed training set with its whole, balanced test set, or with images held out of
    the training set in that place.

    images uint8 [N, 3, H, W] (at 224 pixels ``folders.Files``, which give such tensors when they
    are indexed or split), labels int64 [N]; counts LongTensor [C]: training images a class;
    clipped LongTensor [C]: how many fewer they are than the profile asks, where a class has fewer;
    gamma: the factor asked for, or, of classes as they are, the measured one; indices int64 [N]:
    places of the training images in the whole set; views: in which a training image may be seen;
    mean, std: of the channels, pixels being 0 to 1; sha256: of the whole set before the cut.
    """

    name: str
    title: str
    gamma: float
    class_names: list[str]
    counts: Tensor
    clipped: Tensor
    indices: np.ndarray
    train_images: Any
    train_labels: Tensor
    test_images: Any
    test_labels: Tensor
    views: Views | Crops
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def __repr__(self) -> str:  # not a page of pixels where a notebook's cell ends with it
        return (f"<{self.title}, gamma {self.gamma:g}: {len(self.train_labels)} training and "
                f"{len(self.test_labels)} test images of {len(self.counts)} classes>")  # fmt: skip

    @property
    def clipping(self) -> str:
        """What the classes lack of the profile, in words; empty when they lack nothing."""
        short = int((self.clipped > 0).sum())
        lacking = many(int(self.clipped.sum()), "image")
        text = f"{lacking} fewer than the profile asks, in {many(short, 'class')}"
        return text if short else ""

    def groups(self, n: int = 3) -> Tensor:
        """Class groups by training count, 0 = head: LongTensor [C]."""
        return class_groups(self.counts, n)

    def seen(self, index: Tensor, view: Tensor) -> Tensor:
        """Training images ``index`` [B], each in its ``view`` [B]: uint8 [B, 3, H, W]."""
        if isinstance(self.views, Crops):
            return next(self.train_images.batches([index], [view]))
        padded = self.views.pad(self.train_images[index])
        return self.views.take(padded, torch.arange(len(index)), view)

    def feed(self, device: torch.device) -> "Feed":
        return (FileFeed if isinstance(self.views, Crops) else Feed)(self, device)

    def normalise(self, images: Tensor, scale: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> float32, less the mean, over the deviation, channels last; scale:
        what ``self.scale`` gives for their device, where it was asked before."""
        mean, std = self.scale(images.device) if scale is None else scale
        images = images.to(mean.dtype)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def scale(self, device: torch.device) -> Tensor:
        """Mean and deviation of the channels, of 255: [2, 1, 3, 1, 1]."""
        return torch.tensor([self.mean, self.std], device=device).view(2, 1, 3, 1, 1) * 255


class Feed:
    """Training images as a network sees them, on its device: the whole set lies there as uint8."""

    whole = True

    def __init__(self, data: LongTailed, device: torch.device) -> None:
        self.data, self.device = data, device
        assert isinstance(data.views, Views)
        self.views, self.padded = data.views, data.views.pad(data.train_images).to(device)
        self.scale = data.scale(device)  # once: nothing is copied to a GPU at each step

    def take(self, index: Tensor, view: Tensor) -> Tensor:
        """The images ``index`` [B] in ``view`` [B]: float32 [B, 3, H, W], normalised."""
        return self.data.normalise(self.views.take(self.padded, index, view), self.scale)

    def epoch(self, view: Tensor) -> Tensor:
        """Every training image in its view: uint8 [N, 3, H, W]."""
        index = torch.arange(len(view), device=self.device)
        parts = zip(index.split(BLOCK), view.split(BLOCK), strict=True)
        return torch.cat([self.views.take(self.padded, *part) for part in parts])

    def ahead(self, indices: Sequence[Tensor], view: Tensor) -> Iterator[Tensor | None]:
        """``take`` of each batch in turn where that is slow and done ahead of the network; here it
        is not, and gives None. view: the view of every training image [N]."""
        return repeat(None, len(indices))


class FileFeed(Feed):
    """The same for images that are decoded as they are needed, ahead of the network."""

    whole = False

    def __init__(self, data: LongTailed, device: torch.device) -> None:
        self.data, self.device, self.scale = data, device, data.scale(device)

    def take(self, index: Tensor, view: Tensor) -> Tensor:
        seen = self.data.seen(index.cpu(), view.cpu())
        return self.data.normalise(seen.to(self.device), self.scale)

    def ahead(self, indices: Sequence[Tensor], view: Tensor) -> Iterator[Tensor | None]:
        own, view = [index.cpu() for index in indices], view.cpu()
        for images in self.data.train_images.batches(own, [view[index] for index in own]):
            yield self.data.normalise(images.to(self.device), self.scale)


def _check(name: str, images: Images | None, holdout: int) -> None:
    if name not in RECIPES:
        raise DataError(f"dataset = {name!r}: unknown.{nearest(name, list(RECIPES))}")
    if name == "folder" and not (images and images.folder):
        raise DataError("dataset = 'folder': needs images with folder and size, such as "
                        "Images(folder='birds', size=64)")  # fmt: skip
    if images and name not in FILE_SETS:
        raise DataError(f"images belong to {', '.join(FILE_SETS)}, not {name}; leave them out")
    if holdout < 0:
        raise DataError(f"holdout = {holdout}: images a class, so it is at least 0")


def fingerprint(name: str) -> str:
    """SHA-256 that stands for a built-in set before its tail is cut; the cut is in the run's spec.

    Sets of image files have theirs in the spec, see ``resolve``; here they have their name.
    """
    return name if name in FILE_SETS else source_sha256(name)


def resolve(
    name: str, images: Images | None, root: str | Path | None = None, strict: bool = True
) -> Images | None:
    """``images`` with what was left out, sha256 included; None for sets without image files.

    Raises DataError when the files are missing (not strict: sha256 stays as given then), or when
    they are not those of the given sha256.
    """
    if name not in FILE_SETS:
        return None
    full, given = folders.complete(name, images), images.sha256 if images else None
    if not strict and not folders.there(full, data_root(root)):
        return full.model_copy(update={"sha256": given})
    found = folders.find(full, name, data_root(root)).sha256
    folders.as_given(name, given, found, data_root(root) / str(full.folder))
    return full.model_copy(update={"sha256": found})


@lru_cache(maxsize=4)
def _load(
    name: str, gamma: float | None, split_seed: int, root: Path, images: Images | None, holdout: int
) -> LongTailed:
    found = folders.find(images, name, root) if images else source(name, root)
    (pixels, labels), (test, test_labels) = found.train, found.test
    left, rest, classes = labels, "", len(found.class_names)
    if holdout:  # taken away first: the tail is cut out of what is left
        smallest = np.bincount(labels, minlength=classes).min()
        if holdout >= smallest:
            raise DataError(f"holdout = {holdout}: the smallest class has only {smallest} images")
        held = long_tailed_indices(labels, [holdout] * classes, split_seed, "holdout")
        left, rest = labels.copy(), f", {holdout} images a class held out"
        left[held] = -1
        test, test_labels = pixels[held], labels[held]
    sizes = torch.from_numpy(np.bincount(left[left >= 0], minlength=classes))
    asked = sizes
    if gamma is not None:
        n_max = sizes.max() if images else sizes.min()
        asked = long_tailed_counts(int(n_max), len(sizes), gamma)
    counts = asked.minimum(sizes)
    if images and not counts.all():
        c = int(counts.argmin())
        raise DataError(f"{name}: class {c}, {found.class_names[c]}, keeps none of its {sizes[c]} "
                        f"images at gamma {gamma:g}; a smaller one leaves it some")  # fmt: skip
    kept = long_tailed_indices(left, counts, split_seed)
    undecoded = isinstance(pixels, folders.Files)
    whole = gamma is None and not (images and images.train_list)
    return LongTailed(
        name, found.title + ("" if whole else "-LT") + rest,
        int(counts.max()) / int(counts.min()) if gamma is None else gamma,
        found.class_names, counts, asked - counts, kept,
        pixels.only(kept) if undecoded else torch.from_numpy(pixels[kept]),
        torch.from_numpy(labels[kept]),
        test if undecoded else torch.from_numpy(test).clone(),
        torch.from_numpy(test_labels).clone(),
        found.views, found.mean, found.std, found.sha256 or source_sha256(name))  # fmt: skip


def load(
    name: str,
    gamma: float | None,
    split_seed: int = 0,
    root: str | Path | None = None,
    images: Images | None = None,
    holdout: int = 0,
) -> LongTailed:
    """The long-tailed version of a data set.

    gamma    the imbalance factor; None: the classes as large as they are
    images   which files, for a set of image files
    holdout  so many images of each class are taken from the training set, before the tail is cut,
             and stand in the place of the test set
    n_max is the smallest class's size in the full set; of image files the largest class's, and a
    class keeps all it has where the profile asks for more. Raises DataError when files are missing
    or damaged, or a class of image files would be left without a training image.
    What is returned is shared by all callers: do not write into it.
    """
    _check(name, images, holdout)
    full = resolve(name, images, root)
    if full:
        full = full.model_copy(update={"sha256": None})  # what was found is now known to be right
    return _load(name, gamma, split_seed, data_root(root), full, holdout)


class Size(NamedTuple):
    """Training images of each class, test images, pixels a side, views of a training image."""

    counts: list[int]
    tests: int
    pixels: int
    views: int


# Images of the largest class, test images.
_SIZES = {"cifar10": (5000, 10_000), "cifar100": (500, 10_000),
          "tiny_imagenet": (500, 10_000), "imagenet": (1300, 50_000)}  # fmt: skip


def size_of(
    name: str,
    gamma: float | None,
    split_seed: int = 0,
    root: str | Path | None = None,
    images: Images | None = None,
    holdout: int = 0,
) -> Size:
    """How large the set that ``load`` gives is: by its profile, so that it need not be there.

    Sets without a known one (digits, folders, fixed lists, files in a folder of another name) are
    looked at; DataError as ``load``.
    """
    _check(name, images, holdout)
    own = images.size if images else None
    standard = not images or (
        images.folder in (None, folders.complete(name, None).folder) and not images.test_list
    )
    if name in _SIZES and gamma is not None and standard:
        largest, tests = _SIZES[name]
        if holdout >= largest:
            raise DataError(f"holdout = {holdout}: the largest class has only {largest} images")
        classes, pixels = RECIPES[name].classes or 0, own or FILE_SETS.get(name) or 32
        counts = long_tailed_counts(largest - holdout, classes, gamma).tolist()
        return Size(counts, holdout * classes or tests, pixels, standard_views(pixels).count)
    data = load(name, gamma, split_seed, root, images, holdout)
    pixels = own or data.test_images[0].shape[-1]
    return Size(data.counts.tolist(), len(data.test_labels), pixels, data.views.count)
