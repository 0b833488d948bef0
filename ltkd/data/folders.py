"""Sets of image files: listed, decoded once where they fit memory, else as they are needed.

What is made of a set lies beside it, in ``<folder>.ltkd/<size>[-<lists>]/``: train.npy and test.npy
(uint8 [N, 3, H, W]; not at 224 pixels) and manifest.json, which is written last.
"""

import errno
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..files import (
    canonical,
    chunks,
    cores,
    locked,
    read_json,
    set_aside,
    sha256,
    sweep,
    write_atomic,
)
from ..params import FILE_SETS, Images
from .sources import DataError, Source
from .views import Crops, standard_views

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Images, too: never left out silently.
UNREAD = (".tif", ".tiff", ".gif", ".jp2", ".heic", ".avif", ".ppm", ".pgm", ".jfif")
MOST_PIXELS = 50_000_000
BLOCK = 512  # images between two flushes: what a kill can cost
FEW = 256  # so few images are decoded sooner than workers start
PARTS = ("train", "test")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_KNOWN = {
    "tiny_imagenet": ("TinyImageNet", "tiny-imagenet-200",
        "the unpacked tiny-imagenet-200 (train/<wnid>/images/*.JPEG, val/images/*.JPEG and "
        "val/val_annotations.txt), which Stanford's course CS231n gives out"),
    "imagenet": ("ImageNet", "imagenet",
        "ILSVRC 2012 (train/<wnid>/*.JPEG, val/<wnid>/*.JPEG), registration at image-net.org"),
    "folder": ("", "", "train/<class>/ and val/<class>/ or test/<class>/, with image files"),
}  # fmt: skip

# ---- one image


def decode(path: str, size: int = 0) -> Image.Image:
    """RGB as stored; with a size: the shorter side resized to it (256 for 224), centre cropped.

    Raises DataError that names the file when it is absent, corrupt or absurdly large.
    """
    from torchvision.transforms.v2 import functional as tv

    try:
        with Image.open(path, formats=("JPEG", "PNG", "BMP", "WEBP")) as image:
            (low, high), side = sorted(image.size), 256 if size == 224 else size
            if max(low * high, side * side * high / low) > MOST_PIXELS:  # before it is decoded
                raise ValueError(f"{image.width} x {image.height}: over 50 megapixels")
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
                plain = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            else:  # a palette's transparency goes by way of RGBA, or Pillow warns
                plain = image.convert("RGBA") if "transparency" in image.info else image
            rgb = plain.convert("RGB")
        return tv.center_crop(tv.resize(rgb, [side]), [size]) if size else rgb
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise DataError(f"{path}: not an image that can be read ({error})") from None


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [3, H, W]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class Files:
    """Images that stay undecoded: each is uint8 [3, size, size] when it is asked for."""

    def __init__(self, paths: list[str], size: int = 224) -> None:
        self.paths, self.size, self.views = paths, size, Crops(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Any) -> Tensor:
        """The centre crop of an image, or of several: a slice, a list or a LongTensor."""
        chosen = np.arange(len(self))[key.numpy() if isinstance(key, Tensor) else key]
        if np.ndim(chosen) == 0:
            return torch.from_numpy(pixels(decode(self.paths[chosen], self.size)))
        none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return torch.cat([none, *self.batches(chunks(chosen, 64))])

    def only(self, indices: np.ndarray) -> "Files":
        return Files([self.paths[i] for i in indices], self.size)

    def split(self, n: int) -> Iterator[Tensor]:
        """Centre crops in order, n at a time: uint8 [n, 3, size, size]."""
        return self.batches(chunks(np.arange(len(self)), n))

    def batches(
        self, indices: Sequence[Any], views: Sequence[Any] | None = None, workers: int | None = None
    ) -> Iterator[Tensor]:
        """For each of ``indices`` [B]: uint8 [B, 3, size, size], centre crops or in their views.

        workers  processes that decode; None: up to 8, none for a few images
        """
        from torchvision.transforms import v2  # noqa: F401  # here, or every worker takes seconds

        keys = [np.asarray(index) for index in indices]
        seeds = [None] * len(keys) if views is None else [np.asarray(view) for view in views]
        if workers is None:
            many = len(keys) > 1 and sum(map(len, keys)) > FEW
            workers = min(8, cores(), len(keys)) if many else 0
        todo = list(zip(keys, seeds, strict=True))
        # A sample is a whole batch. A generator of its own leaves the global one alone. Workers are
        # forked where that is safe: the pool's processes would spawn them, which takes seconds.
        how = "fork" if workers and sys.platform == "linux" else None
        loader = DataLoader(_Batches(self), None, sampler=todo, num_workers=workers,
                            generator=torch.Generator(), multiprocessing_context=how)  # fmt: skip
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class _Batches(Dataset[Any]):
    """What a loader's worker does: from (indices, views) to a batch."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getitem__(self, key: Any) -> Tensor | DataError:
        files, (index, view) = self.files, key
        try:
            if view is None:
                seen = [decode(files.paths[i], files.size) for i in index]
            else:
                seen = [files.views.take(decode(files.paths[i]), int(i), int(v))
                        for i, v in zip(index, view, strict=True)]  # fmt: skip
            return torch.from_numpy(np.stack([pixels(image) for image in seen]))
        except DataError as error:  # raised by who asked: a worker's traceback would hide it
            return error


# ---- which files


class Listing(NamedTuple):
    """classes: sorted folder names; names: for people; train, test: (path, bytes, label)."""

    classes: list[str]
    names: list[str]
    train: list[tuple[str, int, int]]
    test: list[tuple[str, int, int]]

    @property
    def sha256(self) -> str:
        return sha256(canonical([self.classes, self.train, self.test]))


def _walk(tree: Path, part: str, inner: str = "") -> list[tuple[str, str, int]]:
    """(class, path, bytes) of every image in ``<part>/<class><inner>/``, in order."""
    found = []
    for name in sorted(os.listdir(tree / part)):
        if name[0] == "." or not (tree / part / name).is_dir():
            continue
        base = f"{part}/{name}{inner}"
        files = sorted(file for file in os.listdir(tree / base) if file[0] != ".")
        unread = [file for file in files if file.lower().endswith(UNREAD)]
        if unread:
            raise DataError(f"{tree / base / unread[0]}: of a kind that is not read; convert it to "
                            f"one of {', '.join(SUFFIXES)}, or remove it")  # fmt: skip
        images = [file for file in files if file.lower().endswith(SUFFIXES)]
        if inside := [file for file in files if (tree / base / file).is_dir()]:
            raise DataError(f"{tree / base / inside[0]}: a folder in a class's own, whose images "
                            "would be left out; move them up, or remove it")  # fmt: skip
        if not images:
            raise DataError(f"{tree / base}: the class {name} has no images")
        paths = [f"{base}/{file}" for file in images]
        found += [(name, path, os.stat(f"{tree}/{path}").st_size) for path in paths]
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise DataError(f"{path}: not UTF-8 text ({why})") from None


def _annotated(tree: Path) -> dict[str, str]:
    """Tiny ImageNet's test images: path to class, of the lines "file class ..."."""
    path, found = tree / "val/val_annotations.txt", {}
    for n, row in enumerate(map(str.split, _lines(path)), 1):
        if row and (len(row) < 2 or "/" in row[0]):
            raise DataError(f"{path}, line {n}: should be a file of val/images and its class")
        if row:
            found[f"val/images/{row[0]}"] = row[1]
    return found


def _listed(tree: Path, file: str, known: dict[str, str]) -> list[tuple[str, str, int]]:
    """(class, path, bytes) of every line "path label" of a list; known: classes not in the path."""
    found, labels = [], []
    seen: dict[str, int] = {}
    for n, line in enumerate(_lines(tree / file), 1):
        path, _, label = line.strip().rpartition(" ")
        at = PurePosixPath(path.strip())
        if not line.strip():
            continue
        if (
            not path
            or not label.isdecimal()
            or len(label) > 9
            or at.is_absolute()
            or ".." in at.parts
        ):
            raise DataError(f"{tree / file}, line {n}: should be a path below {tree} and a label")
        if not (tree / at).is_file():
            raise DataError(f"{tree / at}: not there, but {file} names it in line {n}")
        own = at.parent.parent if at.parent.name == "images" else at.parent
        name = known.get(str(at), own.name)
        if (before := seen.setdefault(str(at), n)) != n:
            raise DataError(f"{tree / file}, line {n}: {at} stands in line {before}, too")
        found.append((name, str(at), (tree / at).stat().st_size))
        labels.append((n, name, int(label)))
    order = {name: c for c, name in enumerate(sorted({name for name, *_ in found}))}
    for n, name, given in labels:
        if given != order[name]:
            raise DataError(f"{tree / file}, line {n}: label {given}, but {name} is number "
                            f"{order[name]} of the list's classes in sorted order")  # fmt: skip
    return found


def listing(name: str, tree: Path, images: Images) -> Listing:
    """All files of the set, or those of its lists. Raises DataError that names what is wrong."""
    known: dict[str, str] = {}
    inner = "/images" if name == "tiny_imagenet" else ""
    try:
        if inner:
            known = _annotated(tree)
        if images.train_list:
            train = _listed(tree, images.train_list, known)
        else:
            train = _walk(tree, "train", inner)
        if images.test_list:
            test = _listed(tree, images.test_list, known)
        elif inner:
            test = sorted((c, path, (tree / path).stat().st_size) for path, c in known.items())
        else:
            held = [part for part in ("val", "test") if (tree / part).is_dir()] or ["test"]
            if name == "folder" and len(held) > 1:
                raise DataError(f"{tree}: val/ and test/ are both there; keep the one to test on "
                                "(or name its images by images.test_list)")  # fmt: skip
            test = _walk(tree, held[0])
        order = {c: i for i, c in enumerate(sorted({c for c, *_ in train}))}
        more = {c for c, *_ in test} ^ order.keys()
        if (tree / "wnids.txt").is_file() and not images.train_list:
            more |= {
                word for line in _lines(tree / "wnids.txt") for word in line.split()
            } ^ order.keys()
        words = _words(tree, list(order))
    except OSError as error:
        raise DataError(
            f"{name}: {error.filename}: {error.strerror}; should hold {_KNOWN[name][2]}"
        ) from None
    if more or not order:
        first = ", ".join(sorted(more)[:5])
        raise DataError(f"{name}: {tree}: train, test and wnids.txt should have the same classes; "
                        f"{len(more)} are not in all: {first}")  # fmt: skip
    twice = {path for _, path, _ in train} & {path for _, path, _ in test}
    if twice:
        raise DataError(f"{tree / min(twice)}: in the training and the test images, like "
                        f"{len(twice) - 1} others; each should be in one of them")  # fmt: skip
    empty = [path for _, path, size in (*train, *test) if not size]
    if empty:  # nor is a pipe or a device opened
        raise DataError(f"{tree / empty[0]}: an empty file, no image; get it again or remove it")
    parts = [[(path, size, order[c]) for c, path, size in part] for part in (train, test)]
    return Listing(list(order), words, *parts)


def _words(tree: Path, classes: list[str]) -> list[str]:
    """The classes as people call them, by words.txt; where two are called the same, with the id."""
    if not (tree / "words.txt").is_file():
        return classes
    rows = (row.partition("\t") for row in _lines(tree / "words.txt"))
    told = {wnid: words.split(",")[0].strip() for wnid, _, words in rows}
    names = [told.get(c) or c for c in classes]
    return [n if names.count(n) == 1 else f"{n} ({c})" for n, c in zip(names, classes, strict=True)]


# ---- prepared files


def _stamps(paths: Iterable[Path]) -> dict[str, list[int]]:
    return {str(p): [(s := p.stat()).st_size, s.st_mtime_ns] for p in paths}


def _unchanged(folder: Path) -> bool:
    """Whether everything has the size and time that it had when it was last looked at whole."""
    try:
        stamps = json.loads((folder / "stamps.json").read_text())
        own = any(Path(path).parent == folder for path in stamps)  # else it is a copy of another
        return own and bool(stamps == _stamps(map(Path, stamps)))
    except (OSError, ValueError, TypeError):
        return False


def _stamp(folder: Path, paths: Iterable[Path]) -> None:
    with suppress(OSError):  # a folder that cannot be written is looked at whole every time
        write_atomic(folder / "stamps.json", json.dumps(_stamps(paths)))


def _content(manifest: dict[str, Any]) -> str:
    """The data set's hash: of pixels, labels and classes, not of files' names."""
    parts = [[manifest[part]["labels"], manifest[part]["sha256"]] for part in PARTS]
    return sha256(canonical([manifest["classes"], parts]))


def _prepared(folder: Path, wanted: str | None, thorough: bool) -> dict[str, Any] | None:
    """The manifest of arrays that are whole and of the ``wanted`` listing, if they are there."""
    path, arrays = folder / "manifest.json", [folder / f"{part}.npy" for part in PARTS]
    try:
        manifest = json.loads(path.read_text())
        good = manifest["sha256"] == _content(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        set_aside(path, "it does not match its sha256")
        return None
    if wanted not in (None, manifest["listing"]) or not all(a.is_file() for a in arrays):
        return None
    if thorough or not _unchanged(folder):
        for part, array in zip(PARTS, arrays, strict=True):
            if sha256(array) != manifest[part]["sha256"]:
                set_aside(array, "it does not match its sha256")
                return None
        _stamp(folder, arrays)
    return dict(manifest)


def _decoded(
    tree: Path, rows: Sequence[Any], size: int, start: int = 0
) -> Iterator[list[Image.Image]]:
    """Blocks of decoded images, from ``start`` on; by threads, since Pillow lets go of the lock."""
    with ThreadPoolExecutor(cores()) as pool:
        for block in chunks(rows[start:], BLOCK):
            yield list(pool.map(decode, [f"{tree}/{row[0]}" for row in block], [size] * len(block)))


@contextmanager
def _display(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tells how many images are done: a bar on a terminal, else a line every ten seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{title}: {done} of {total} images", file=sys.stderr, flush=True)

    yield tell


def _make(folder: Path, tree: Path, found: Listing, size: int) -> dict[str, Any]:
    """Decode everything into ``folder``, from where an earlier call was killed; the manifest."""
    progress, total = folder / "progress.json", len(found.train) + len(found.test)
    done = dict.fromkeys(PARTS, 0)
    at = read_json(progress) or {}
    done |= at["done"] if at.get("listing") == found.sha256 else {}
    manifest: dict[str, Any] = {
        "listing": found.sha256, "classes": found.classes, "names": found.names}  # fmt: skip
    with _display(f"{tree.name}: decoding to {size} pixels", total) as tell:
        for part, rows in zip(PARTS, (found.train, found.test), strict=True):
            header, path = io.BytesIO(), folder / f"{part}.npy.part"
            shape = (len(rows), 3, size, size)
            np.lib.format.write_array_header_1_0(
                header, {"descr": "|u1", "fortran_order": False, "shape": shape})  # fmt: skip
            start, each = len(header.getvalue()), 3 * size * size
            path.touch()
            if path.stat().st_size < start + done[part] * each:
                done[part] = 0
            left = start + len(rows) * each - path.stat().st_size
            if shutil.disk_usage(folder).free < left:
                raise OSError(errno.ENOSPC, f"the disk is too full, {left / 1e9:.1f} GB are needed")
            # Appended, not memory-mapped: a disk that fills up is then an error, not a bus error.
            with path.open("r+b") as file:
                file.write(header.getvalue())
                file.truncate(start + done[part] * each)
                file.seek(0, os.SEEK_END)
                for block in _decoded(tree, rows, size, done[part]):
                    file.writelines(pixels(image).data for image in block)
                    file.flush()
                    os.fsync(file.fileno())
                    done[part] += len(block)
                    write_atomic(progress, json.dumps({"listing": found.sha256, "done": done}))
                    tell(sum(done.values()))
            labels = [row[2] for row in rows]
            manifest[part] = {"shape": shape, "labels": labels, "sha256": sha256(path)}
    for part in PARTS:
        os.replace(folder / f"{part}.npy.part", folder / f"{part}.npy")
    progress.unlink(missing_ok=True)
    manifest["sha256"] = _content(manifest)
    write_atomic(folder / "manifest.json", json.dumps(manifest))
    _stamp(folder, [folder / f"{part}.npy" for part in PARTS])
    return manifest


def _arrays(name: str, tree: Path, folder: Path, images: Images, thorough: bool) -> dict[str, Any]:
    """The manifest of the prepared arrays, which are made when they are absent or outdated."""
    found = listing(name, tree, images) if _there(tree, images) else None
    wanted = found and found.sha256
    manifest = _prepared(folder, wanted, thorough)
    if manifest or found is None:
        return manifest or _absent(name, tree)
    failed = None
    try:
        with locked(folder.parent / f"{folder.name}.lock"):
            folder.mkdir(exist_ok=True)
            try:
                manifest = _prepared(folder, wanted, False)  # another process may have made it
                manifest = manifest or _make(folder, tree, found, images.size or 64)
            except DataError as error:  # what is decoded stays: perhaps a disk did not answer
                failed = error
                if not (folder / "progress.json").exists():
                    for path in folder.glob("*.part"):
                        path.unlink()
        if failed:
            with suppress(OSError):  # what is not empty holds something else
                folder.rmdir()
                folder.parent.rmdir()
            raise failed
    except OSError as error:
        raise DataError(
            f"{name}: decoded images cannot be written to {folder}: {error.strerror}; "
            "what is there so far is used again"
        ) from error
    assert manifest is not None
    return manifest


def _files(name: str, tree: Path, folder: Path, images: Images, thorough: bool) -> dict[str, Any]:
    """The manifest of files that stay where they are; where it is up to date, none is walked."""
    if not _there(tree, images):
        return _absent(name, tree)
    if not thorough and _unchanged(folder) and (kept := read_json(folder / "manifest.json")):
        return kept
    found = listing(name, tree, images)
    manifest: dict[str, Any] = {
        "sha256": found.sha256, "classes": found.classes, "names": found.names}  # fmt: skip
    for part, rows in zip(PARTS, (found.train, found.test), strict=True):
        manifest[part] = {"labels": [row[2] for row in rows], "paths": [row[0] for row in rows]}
        if thorough:
            with _display(f"{tree.name}: reading {part}", len(rows)) as tell:
                for number, block in enumerate(_decoded(tree, rows, 0)):
                    tell(number * BLOCK + len(block))
    # A folder's time changes when a file in it comes or goes; one rewritten in place is for check.
    own = (images.train_list, images.test_list, "train", "val", "test", "val/val_annotations.txt")
    watched = {os.path.dirname(row[0]) for row in found.train + found.test} | {p for p in own if p}
    with suppress(OSError):  # a read-only data root is walked in every process
        write_atomic(folder / "manifest.json", json.dumps(manifest))
        seen = [tree / p for p in sorted(watched) if (tree / p).exists()]
        _stamp(folder, [*seen, folder / "manifest.json"])
    return manifest


def _there(tree: Path, images: Images) -> bool:
    return (tree / (images.train_list or "train")).exists()


def _absent(name: str, tree: Path) -> Any:
    raise DataError(f"{name}: {tree} is not there, or not whole (the data root is {tree.parent}). "
                    f"Put there {_KNOWN[name][2]}; or name another root by --data-root or "
                    "LTKD_DATA. Then `ltkd data prepare` reads it")  # fmt: skip


# ---- what the rest of the library asks for


def complete(name: str, images: Images | None) -> Images:
    """``images`` with the set's own folder and size where they were left out; without sha256."""
    given = images or Images()
    new = {"folder": given.folder or _KNOWN[name][1], "size": given.size or FILE_SETS[name],
           "sha256": None}  # fmt: skip
    return given.model_copy(update=new)


def _places(images: Images, root: Path) -> tuple[Path, Path]:
    """The set's folder, and the one of what is made of it."""
    lists = [images.train_list, images.test_list]
    kind = f"-{sha256(canonical(lists))[:8]}" if any(lists) else ""
    tree = root / str(images.folder)
    return tree, tree.with_name(f"{tree.name}.ltkd") / f"{images.size}{kind}"


def there(images: Images, root: Path) -> bool:
    """Whether there is anything to read, be it only what was prepared."""
    tree, folder = _places(images, root)
    return _there(tree, images) or (images.size != 224 and (folder / "manifest.json").is_file())


@lru_cache(maxsize=8)
def find(images: Images, name: str, root: Path, thorough: bool = False) -> Source:
    """The whole set, decoded first where that was not done; ``images`` as from ``complete``.

    At 224 pixels its images are ``Files``; else training images are a memory map.
    thorough: read everything again, whatever the stamps say: what was decoded, or at 224 pixels
    the images themselves. Raises DataError.
    """
    tree, folder = _places(images, root)
    make = _files if images.size == 224 else _arrays
    manifest = make(name, tree, folder, images, thorough)

    def part(name: str) -> Any:
        labels = np.asarray(manifest[name]["labels"], np.int64)
        if images.size == 224:
            return Files([f"{tree}/{path}" for path in manifest[name]["paths"]]), labels
        return np.lib.format.open_memmap(folder / f"{name}.npy", mode="c"), labels

    views, title = standard_views(images.size or 64), _KNOWN[name][0] or tree.name
    return Source(title, manifest["names"], part("train"), part("test"), _MEAN, _STD, views,
                  manifest["sha256"])  # fmt: skip


def as_given(name: str, given: str | None, found: str, tree: Path) -> None:
    """Raises DataError where a parameter file names other images than those that are there."""
    if given not in (None, found):
        raise DataError(f"{name}: images.sha256 = {given}, but the images in {tree} have {found}")


def report(name: str, images: Images | None, root: Path, check: bool) -> str:
    """What `ltkd data prepare` and `ltkd data check` say, once everything is in order."""
    given = images.sha256 if images else None
    images = complete(name, images)
    tree, folder = _places(images, root)
    if (
        check
        and images.size != 224
        and there(images, root)
        and not (folder / "manifest.json").exists()
    ):
        raise DataError(f"{name}: nothing is decoded yet in {folder}: `ltkd data prepare` does it")
    found = find(images, name, root, check)
    as_given(name, given, found.sha256, tree)
    if not check:
        sweep(folder.parent)
    counts = f"{len(found.train[1])} training and {len(found.test[1])} test images"
    return (f"{found.title}: {counts} of {len(found.class_names)} classes, sha256"
            f" {found.sha256[:16]}, in {folder.parent}")  # fmt: skip
