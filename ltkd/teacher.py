"""The frozen teacher's answers, computed once and shared by every student, method and ablation.

A view is an index (``Views``), so an image has finitely many; a table holds the teacher's answer to
each (view, image) that was ever asked for, in fp16: of a teacher in fp32 three more bits than bf16
has, for the same bytes. Rows are filled when they are first needed, by whichever run that is.
"""

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import Feed, LongTailed, stream
from .files import Stopped, chunks, locked, set_aside, write_atomic
from .losses import LOSSES, Compared
from .losses.common import at_least_float32, average_pool
from .methods import METHODS
from .models import forward_features, forward_maps
from .params import RunSpec
from .precision import autocast

# Images in a batch of the teacher, the last one padded: a row's bytes do not depend on who asks.
TEACHER_BATCH = 256


def views_of_epoch(data: LongTailed, seed: int, epoch: int) -> Tensor:
    """The view of each training image in this epoch: LongTensor [N]."""
    draw = stream("views", seed, epoch).randint(data.views.count, size=len(data.train_labels))
    return torch.from_numpy(draw.astype(np.int64))


def answer(
    model: nn.Module, x: Tensor, compares: Compared, pre_activation: bool = False
) -> tuple[Tensor, Any]:
    """Logits [B, C], float32 or more, and what a loss compares: they, maps or features."""
    if compares == "features":
        logits, features = forward_features(model, x, pre_activation)
        return at_least_float32(logits), features
    if compares == "maps":
        logits, maps = forward_maps(model, x)
        return at_least_float32(logits), maps
    logits = at_least_float32(model(x))
    return logits, logits


def table_name(spec: RunSpec) -> str:
    pool = spec.method_args.get("pool")
    return f"maps{pool:g}.npy" if pool else "logits.npy"


def table_row(classes: int, side: int = 0, number: str = "<f2") -> np.dtype[Any]:
    """A row of a table: logits, or CAT-KD's maps pooled to ``side`` x ``side``, and a check."""
    shape = (classes, side, side) if side else (classes,)
    return np.dtype([("answer", number, shape), ("check", "<u4")])


class Table:
    """Rows of answers in one file of a given shape, [views * images], read through memory.

    A row is (answer, check); check is the CRC-32 of the answer, begun with the row's place,
    or 0 where nobody asked yet. A row that a kill or a disk has torn does not match its check, and
    counts as not filled. The file is one of holes: a row takes room on the disk once it is filled.
    """

    def __init__(
        self, path: Path, row: np.dtype[Any], length: int, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.path, self.dtype, self.length = path, row, length
        with locked(path.with_suffix(".lock"), stop):
            if not self._whole():
                part = path.with_suffix(".part")
                np.lib.format.open_memmap(part, mode="w+", dtype=row, shape=(length,))
                os.replace(part, path)
        self.rows = np.lib.format.open_memmap(path, mode="r")  # never a pickle or an archive

    def _whole(self) -> bool:
        """Whether the file is there, in its shape; a damaged one is set aside."""
        try:
            rows = np.lib.format.open_memmap(self.path, mode="r")
            if (rows.dtype, rows.shape) != (self.dtype, (self.length,)):
                raise ValueError(f"it holds {rows.shape} of {rows.dtype}")
        except FileNotFoundError:
            return False
        except (ValueError, EOFError) as error:
            set_aside(self.path, error)
            return False
        return True

    def read(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answers of the rows ``place`` [N], [N, C] or [N, C, r, r], and which are filled."""
        rows = self.rows[place]
        good = rows["check"] == self._checks(rows["answer"], place)
        torn = int((~good & (rows["check"] != 0)).sum())
        if torn:
            print(f"{self.path}: {torn} damaged rows are filled again", flush=True)
        return rows["answer"], good

    def write(self, place: np.ndarray, answers: np.ndarray) -> None:
        """Not through memory: there a full disk would kill the process, here it is an OSError."""
        rows = np.zeros(len(place), self.dtype)
        rows["answer"] = answers
        rows["check"] = self._checks(rows["answer"], place)
        with self.path.open("r+b") as file:
            for row, i in zip(rows, place.tolist(), strict=True):
                try:
                    at = self.rows.offset + i * self.dtype.itemsize
                    os.pwrite(file.fileno(), row.tobytes(), at)
                except OSError as error:
                    error.filename = str(self.path)
                    raise

    @staticmethod
    def _checks(answers: np.ndarray, place: np.ndarray) -> list[int]:
        width = answers.itemsize * math.prod(answers.shape[1:])
        rows: list[Any] = [*np.ascontiguousarray(answers).reshape(-1).view(f"V{width}")]
        return [zlib.crc32(row, i) or 1 for row, i in zip(rows, place.tolist(), strict=True)]


class Teacher:
    """What a loss asks of the frozen teacher about the training images in one epoch's views.

    Logits are kept in a ``Table`` below ``folder``, and so are maps, pooled to what CAT-KD
    compares; without a folder the teacher is live, and a batch is computed when it is asked for.
    """

    def __init__(self, model: nn.Module, spec: RunSpec, feed: Feed, folder: Path | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.spec, self.feed, self.folder = spec, feed, folder
        loss = METHODS[spec.method].loss
        self.compares: Compared = LOSSES[loss].compares if loss else "logits"
        self.pool = int(spec.method_args.get("pool", 0))
        self.rows: Tensor | None = None
        self.table: Table | None = None

    @torch.no_grad()
    def _ask(self, x: Tensor) -> Any:
        with autocast(self.spec, x.device):
            told = answer(self.model, x, self.compares, pre_activation=True)[1]
        return average_pool(at_least_float32(told), self.pool) if self.pool else told

    def begin_epoch(self, view: Tensor, stop: Callable[[], bool] = lambda: False) -> None:
        """Look up this epoch's answers, and compute those that nobody asked for before.

        view: the views of all training images, LongTensor [N] on the device. Raises Stopped; the
        rows computed until then are kept.
        """
        if self.folder is None:
            return
        table = self.table = self.table or self._table(self.folder, stop)
        place = (view.cpu() * len(view) + torch.arange(len(view))).numpy()
        rows, good = table.read(place)
        blocks = chunks(np.flatnonzero(~good), TEACHER_BATCH)
        # Runs that want the same rows share the work: each takes the blocks in an order of its own
        # and reads those that another has filled meanwhile.
        for b in np.random.default_rng().permutation(len(blocks)):
            if stop():
                raise Stopped("stopped while a teacher's table was filled")
            block = blocks[b]
            rows[block], good = table.read(place[block])
            if not good.all():
                rows[block] = self._block(torch.from_numpy(block).to(view.device), view)
                table.write(place[block], rows[block])
        told = torch.from_numpy(rows)
        # In one place for all epochs: a recorded step reads there.
        self.rows = told.to(self.feed.device) if self.rows is None else self.rows.copy_(told)

    def _block(self, index: Tensor, view: Tensor) -> np.ndarray:
        """Answers about up to TEACHER_BATCH images, fp16, in a full batch always."""
        padded = index.repeat(-(-TEACHER_BATCH // len(index)))[:TEACHER_BATCH]
        told = self._ask(self.feed.take(padded, view[padded]))
        return np.asarray(told[: len(index)].half().cpu().numpy())

    def _table(self, folder: Path, stop: Callable[[], bool]) -> Table:
        data = self.feed.data
        views, images = data.views.count, len(data.train_labels)
        row = table_row(len(data.class_names), self.pool)
        path = folder / table_name(self.spec)
        about = {"teacher": folder.name, "network": self.spec.teacher, "data": data.sha256,
                 "gamma": data.gamma, "row": "view * images + image", "views": views,
                 "images": images, "answer": row["answer"].shape,
                 "precision": self.spec.precision}  # fmt: skip
        write_atomic(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
        return Table(path, row, views * images, stop)

    def answer(self, x: Tensor, index: Tensor) -> Any:
        """What the loss compares, of the images ``index`` [B], seen as ``x``: logits [B, C],
        pooled maps [B, C, r, r], or a list of features."""
        return self.rows[index].float() if self.rows is not None else self._ask(x)
