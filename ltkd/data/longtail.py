"""The exponential long tail (Cui et al., CVPR 2019) cut out of a balanced training set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import canonical, data_root, sha256
from ..groups import class_groups
from ..params import FILE_SETS, Images
from .sources import source, source_sha256
from .views import Views


def stream(purpose: str, *keys: int) -> np.random.RandomState:
    """A random stream of its own for each purpose and key.

    Nothing is drawn from a shared generator, so adding a run or a method changes no other, and a
    run that is resumed needs no generator's state. RandomState because numpy has frozen its
    streams: they are the same on every platform and in every later version.
    """
    digest = bytes.fromhex(sha256(canonical([purpose, *keys])))
    return np.random.RandomState(np.frombuffer(digest, np.uint32))


def long_tailed_counts(n_max: int, num_classes: int, gamma: float) -> Tensor:
    """Images kept of each class, class 0 the most: int(n_max * (1 / gamma)^(c / (C - 1))).

    Returns a LongTensor [C]. gamma is the imbalance factor, largest over smallest class.
    Raises ValueError for gamma < 1.
    """
    if not gamma >= 1:
        raise ValueError(f"gamma = {gamma}: largest over smallest class, so it is at least 1")
    if n_max < 1 or num_classes < 2:
        raise ValueError(
            f"n_max = {n_max}, num_classes = {num_classes}: at least 1 image and 2 classes"
        )
    last = num_classes - 1
    return torch.tensor([int(n_max * (1 / gamma) ** (c / last)) for c in range(num_classes)])


def long_tailed_indices(labels: np.ndarray, counts: Tensor, split_seed: int) -> np.ndarray:
    """Which training images are kept, sorted: int64 [sum of counts], drawn without replacement.

    One seeded generator permutes each class whole, so that a smaller tail is a subset of a larger.
    """
    draw = stream("split", split_seed)
    kept = []
    for c, count in enumerate(counts.tolist()):
        members = np.flatnonzero(labels == c)
        if count > len(members):
            raise ValueError(
                f"class {c} has {len(members)} images, fewer than the {count} asked for"
            )
        kept.append(draw.permutation(members)[:count])
    return np.sort(np.concatenate(kept))


@dataclass(frozen=True, eq=False)
class LongTailed:
    """A long-tailed training set with its whole, balanced test set.

    images uint8 [N, 3, H, W], labels int64 [N]; counts LongTensor [C]: training images a class.
    """

    name: str
    title: str
    gamma: float
    class_names: list[str]
    counts: Tensor
    indices: np.ndarray
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    views: Views
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    def groups(self, n: int = 3) -> Tensor:
        """Class groups by training count, 0 = head: LongTensor [C]."""
        return class_groups(self.counts, n)

    def seen(self, index: Tensor, view: Tensor) -> Tensor:
        """Training images ``index`` [B], each in its ``view`` [B]: uint8 [B, 3, H, W]."""
        padded = self.views.pad(self.train_images[index])
        return self.views.take(padded, torch.arange(len(index)), view)

    def feed(self, device: torch.device) -> "Feed":
        return Feed(self, device)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32, less the mean, over the deviation, channels last."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1) * 255
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


class Feed:
    """Training images as a network sees them, on its device: the whole set lies there as uint8."""

    def __init__(self, data: LongTailed, device: torch.device) -> None:
        self.data, self.device = data, device
        self.padded = data.views.pad(data.train_images).to(device)

    def take(self, index: Tensor, view: Tensor) -> Tensor:
        """The images ``index`` [B] in ``view`` [B]: float32 [B, 3, H, W], normalised."""
        return self.data.normalise(self.data.views.take(self.padded, index, view))

    def batches(self, indices: Sequence[Tensor], view: Tensor) -> Iterator[Tensor]:
        """``take`` of each batch in turn; view: the view of every training image [N]."""
        return (self.take(index, view[index]) for index in indices)


def fingerprint(name: str) -> str:
    """SHA-256 that stands for a built-in set before its tail is cut; the cut is in the run's spec.

    Sets of image files have theirs in the spec, see ``resolve``; here they have their name.
    """
    return name if name in FILE_SETS else source_sha256(name)


def resolve(
    name: str, images: Images | None, root: str | Path | None = None, strict: bool = True
) -> Images | None:
    """``images`` with what was left out, sha256 included; None for sets without image files.

    Raises DataError when the files are missing; not strict: sha256 stays None then.
    """
    if name not in FILE_SETS:
        return None
    raise NotImplementedError


@lru_cache(maxsize=4)
def _load(name: str, gamma: float | None, split_seed: int, root: Path) -> LongTailed:
    found = source(name, root)
    images, labels = found.train
    classes = len(found.class_names)
    assert gamma is not None
    counts = long_tailed_counts(int(np.bincount(labels).min()), classes, gamma)
    kept = long_tailed_indices(labels, counts, split_seed)
    return LongTailed(
        name, f"{found.title}-LT", gamma, found.class_names, counts, kept,
        torch.from_numpy(images[kept]), torch.from_numpy(labels[kept]),
        torch.from_numpy(found.test[0]).clone(), torch.from_numpy(found.test[1]).clone(),
        Views(found.shift, found.flip), found.mean, found.std, source_sha256(name))  # fmt: skip


def load(
    name: str,
    gamma: float | None,
    split_seed: int = 0,
    root: str | Path | None = None,
    images: Images | None = None,
) -> LongTailed:
    """The long-tailed version of a data set. n_max is the smallest class's size in the full set.

    gamma   the imbalance factor; None: the classes as large as they are (sets of image files)
    images  which files, for a set of image files
    Raises DataError when files are missing or damaged.
    """
    return _load(name, gamma, split_seed, data_root(root))
