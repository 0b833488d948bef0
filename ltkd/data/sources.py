"""Where images come from. Nothing is unpickled before its md5 is known to be the official one."""

import hashlib
import pickle
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..files import data_root, sha256
from ..params import DataError
from .views import Crops, Views, standard_views


@dataclass(frozen=True)
class Source:
    """Everything a data set has before its tail is cut: uint8 images [N, 3, H, W] (an array, or
    the ``Files`` they are decoded from) and labels int64 [N]. sha256: of sets of image files."""

    title: str
    class_names: list[str]
    train: tuple[Any, np.ndarray]
    test: tuple[Any, np.ndarray]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: Views | Crops
    sha256: str = ""


@dataclass(frozen=True)
class _Cifar:
    folder: str
    files: dict[str, str]  # torchvision's md5 sums
    names: tuple[str, str]  # the meta file and its key
    labels: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR = {
    "cifar100": _Cifar(
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
         "meta": "7973b15100ade9c7d40fb424638fde48"},
        ("meta", "fine_label_names"), "fine_labels",
        (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cifar10": _Cifar(
        "cifar-10-batches-py",
        {"data_batch_1": "c99cafc152244af753f735de768cd75f",
         "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
         "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
         "data_batch_4": "634d18415352ddfa80567beed471001a",
         "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
         "test_batch": "40351d587109b95175f43aff81a1287e",
         "batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        ("batches.meta", "label_names"), "labels",
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}  # fmt: skip


@cache
def digits() -> Source:
    """scikit-learn's handwritten digits: 1,797 real 8x8 images, padded to 16x16, three channels.

    The test set is fixed: of each class, every third image in the bundled order, 596 in all. Views
    are shifts of up to 2 pixels, without flips: a mirrored digit is another thing.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.pad(images, ((0, 0), (4, 4), (4, 4)))
    images = np.repeat(images[:, None], 3, axis=1)
    labels = bunch.target.astype(np.int64)
    rank = np.empty(len(labels), np.int64)
    for c in range(10):
        rank[labels == c] = np.arange((labels == c).sum())
    test = rank % 3 == 2
    names = [str(c) for c in range(10)]
    train = images[~test], labels[~test]
    mean, std = (0.0762,) * 3, (0.2296,) * 3
    return Source(
        "Digits", names, train, (images[test], labels[test]), mean, std, Views(2, flip=False)
    )


def _read(name: str, folder: Path, file: str) -> dict:
    """One official CIFAR pickle, refused unless its bytes have torchvision's md5."""
    path = folder / file
    get = f"`ltkd data prepare {name}` gets it"
    if not path.is_file():
        raise DataError(f"{name}: {path} is not there (the data root is {folder.parent}); {get}, "
                        "or name another root by --data-root or LTKD_DATA")  # fmt: skip
    data = path.read_bytes()
    if hashlib.md5(data).hexdigest() != _CIFAR[name].files[file]:
        raise DataError(
            f"{name}: {path} is not the official file (md5 differs); remove it, then {get}"
        )
    return pickle.loads(data, encoding="latin1")


@cache
def cifar(name: str, root: Path) -> Source:
    """CIFAR-10 or CIFAR-100 in torchvision's folder below ``root``."""
    about = _CIFAR[name]
    folder = root / about.folder

    def part(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
        read = [_read(name, folder, file) for file in files]
        images = np.concatenate([batch["data"] for batch in read]).reshape(-1, 3, 32, 32)
        return images, np.concatenate([np.asarray(batch[about.labels], np.int64) for batch in read])

    test = [file for file in about.files if file.startswith("test")]
    train = [file for file in about.files if file not in (*test, about.names[0])]
    names = list(_read(name, folder, about.names[0])[about.names[1]])
    title = name.replace("cifar", "CIFAR-")
    both = part(train), part(test)
    return Source(title, names, *both, about.mean, about.std, standard_views(32))


def _check(name: str) -> None:
    if name not in ("digits", *_CIFAR):
        raise DataError(f"dataset = {name!r}: unknown; should be digits, {' or '.join(_CIFAR)}")


def source(name: str, root: str | Path | None = None) -> Source:
    _check(name)
    return digits() if name == "digits" else cifar(name, data_root(root))


@cache
def source_sha256(name: str) -> str:
    """The data set's hash. CIFAR's is over the official md5 sums, which are checked whenever it is
    read: a record can be found again on a machine that does not hold the data."""
    _check(name)
    if name == "digits":
        return sha256(b"".join(a.tobytes() for a in (*digits().train, *digits().test)))
    about = _CIFAR[name]
    scale = (about.mean, about.std) if name == "cifar10" else ""  # once it was CIFAR-100's
    return sha256(repr(sorted(about.files.items())) + f"{scale}")


def prepare(name: str, root: str | Path | None = None) -> str:
    """Get and check digits or CIFAR; says what is there. Downloads what is missing or damaged.

    Raises DataError where that fails; sets of image files are prepared by ``ltkd data prepare``.
    """
    _check(name)
    folder = data_root(root)
    if name != "digits":
        try:
            cifar(name, folder)
        except DataError:
            from torchvision.datasets import CIFAR10, CIFAR100

            folder.mkdir(parents=True, exist_ok=True)
            print(f"{name}: about 170 MB from its home page, to {folder}", flush=True)
            try:
                {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](str(folder), download=True)
            except Exception as error:
                raise DataError(
                    f"{name}: the download to {folder} failed ({error}). Without a network, "
                    f"put the official files into {folder / _CIFAR[name].folder} by hand: "
                    f"{', '.join(_CIFAR[name].files)}"
                ) from None
    return report(name, root)


def report(name: str, root: str | Path | None = None) -> str:
    """What is there of digits or CIFAR, which is checked as it is read. Raises DataError."""
    found, where = source(name, root), "" if name == "digits" else f", in {data_root(root)}"
    return (
        f"{found.title}: {len(found.train[1])} training and {len(found.test[1])} test images, "
        f"sha256 {source_sha256(name)[:16]}{where}"
    )
