"""The frozen teacher's answers, computed once and shared by every student, method and ablation.

All runs with the same seed see the same views in the same epoch (``views_of_epoch``), so the
teacher's logits of one (seed, epoch) are one small file, [N, C] in fp16, made by the first run that
needs it and read by all others. fp16, not bf16: three more bits of a logit for the same bytes.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Feed, LongTailed, stream
from .files import Stopped, locked, sha256, write_atomic
from .losses import LOSSES, Compared
from .methods import METHODS
from .models import forward_features, forward_maps
from .params import RunSpec

BLOCK = 256  # images a teacher batch, the last one padded: a row's bytes do not depend on who asks


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
        return _raised(logits), features
    if compares == "maps":
        logits, maps = forward_maps(model, x)
        return _raised(logits), maps
    logits = _raised(model(x))
    return logits, logits


def _raised(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Teacher:
    """What a loss asks of the frozen teacher about the training images in one epoch's views.

    Logits are kept on disk below ``folder``, and so are maps, pooled to what CAT-KD compares;
    without a folder the teacher is live, and a batch is computed when it is asked for.
    """

    def __init__(self, model: nn.Module, spec: RunSpec, feed: Feed, folder: Path | None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.spec, self.feed, self.folder = spec, feed, folder
        loss = METHODS[spec.method].loss
        self.compares: Compared = LOSSES[loss].compares if loss else "logits"
        self.pool = int(spec.method_args.get("pool", 0))
        self.rows: Tensor | None = None

    @torch.no_grad()
    def _ask(self, x: Tensor) -> Any:
        with autocast(self.spec, x.device):
            told = answer(self.model, x, self.compares, pre_activation=True)[1]
        return F.adaptive_avg_pool2d(_raised(told), self.pool) if self.pool else told

    def begin_epoch(
        self, seed: int, epoch: int, view: Tensor, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Load or make the table of this epoch; view: its views, LongTensor [N] on the device.

        A table that does not match its checksum is set aside and made anew.
        """
        if self.folder is None:
            return
        kind = f"-maps{self.pool}" if self.pool else ""
        path = self.folder / f"seed{seed}-epoch{epoch:04d}{kind}.npy"
        data = self._read(path)
        if data is None:
            with locked(path.with_suffix(".lock"), stop):
                data = self._read(path)
                if data is None:
                    buffer = io.BytesIO()
                    np.save(buffer, self._fill(view, stop).numpy(), allow_pickle=False)
                    data = buffer.getvalue()
                    write_atomic(path, data)
                    write_atomic(path.with_suffix(".sha256"), sha256(data))
        rows = np.load(io.BytesIO(data), allow_pickle=False)
        self.rows = torch.from_numpy(rows).to(self.feed.device)

    def _read(self, path: Path) -> bytes | None:
        """A table's bytes when they are whole; its checksum is written after it."""
        check = path.with_suffix(".sha256")
        if not (path.exists() and check.exists()):
            return None
        data = path.read_bytes()
        if sha256(data) == check.read_text():
            return data
        os.replace(path, path.with_name(f"{path.name}.damaged"))
        print(f"{path}: damaged; kept as {path.name}.damaged, made anew", flush=True)
        return None

    def _fill(self, view: Tensor, stop: Callable[[], bool]) -> Tensor:
        n = len(view)
        out = []
        for start in range(0, n, BLOCK):
            if stop():
                raise Stopped("stopped while a teacher's table was filled")
            index = torch.arange(start, start + BLOCK, device=view.device) % n
            told = self._ask(self.feed.take(index, view[index]))
            out.append(told[: n - start].half().cpu())
        return torch.cat(out)

    def answer(self, x: Tensor, index: Tensor) -> Any:
        """What the loss compares, of the images ``index`` [B], seen as ``x``: logits [B, C],
        pooled maps [B, C, r, r], or a list of features."""
        return self.rows[index].float() if self.rows is not None else self._ask(x)


def autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    """bf16 autocast where the spec asks for it; weights, losses and the optimiser stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.precision == "bf16")
