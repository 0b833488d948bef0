"""The frozen teacher's answers, computed once and shared by every student, method and ablation.

All runs with the same seed see the same views in the same epoch (``views_of_epoch``), so the
teacher's logits of one (seed, epoch) are one small file, [N, C] in fp16, made by the first run that
needs it and read by all others. fp16, not bf16: three more bits of a logit for the same bytes.
"""

import io
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from .data import LongTailed, stream
from .files import write_atomic
from .params import RunSpec

BLOCK = 256  # images a teacher batch, the last one padded: a row's bytes do not depend on who asks


def views_of_epoch(data: LongTailed, seed: int, epoch: int) -> Tensor:
    """The view of each training image in this epoch: LongTensor [N]."""
    draw = stream("views", seed, epoch).randint(data.views.count, size=len(data.train_labels))
    return torch.from_numpy(draw.astype(np.int64))


class Teacher:
    """Logits of the training images in one epoch's views.

    They are kept on disk below ``folder``; without a folder the teacher is live, and a batch is
    computed when it is asked for.
    """

    def __init__(self, model: nn.Module, spec: RunSpec, data: LongTailed, padded: Tensor,
                 folder: Path | None) -> None:  # fmt: skip
        self.model = model.eval().requires_grad_(False)
        self.spec, self.data, self.padded, self.folder = spec, data, padded, folder
        self.rows: Tensor | None = None

    @torch.inference_mode()
    def _answer(self, index: Tensor, view: Tensor) -> Tensor:
        x = self.data.normalise(self.data.views.take(self.padded, index, view))
        with autocast(self.spec, x.device):
            return self.model(x).float()

    def begin_epoch(self, seed: int, epoch: int, view: Tensor) -> None:
        """Load or make the table of this epoch; view: its views, LongTensor [N] on the device."""
        if self.folder is None:
            return
        path = self.folder / f"seed{seed}-epoch{epoch:04d}.npy"
        shape = (len(view), self.data.counts.numel())
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    buffer = io.BytesIO()
                    np.save(buffer, self._fill(view).numpy(), allow_pickle=False)
                    write_atomic(path, buffer.getvalue())
            path.with_suffix(".lock").unlink(missing_ok=True)
        rows = np.load(path, allow_pickle=False)
        if rows.shape != shape or rows.dtype != np.float16:
            raise ValueError(
                f"{path}: is {rows.dtype} {rows.shape}, should be float16 {shape}; remove it"
            )
        self.rows = torch.from_numpy(rows).to(self.padded.device)

    def _fill(self, view: Tensor) -> Tensor:
        n = len(view)
        out = []
        for start in range(0, n, BLOCK):
            index = torch.arange(start, start + BLOCK, device=view.device) % n
            out.append(self._answer(index, view[index])[: n - start].half().cpu())
        return torch.cat(out)

    def logits(self, index: Tensor, view: Tensor) -> Tensor:
        """Teacher logits of the images ``index`` [B] in ``view`` [B]: float32 [B, C]."""
        if self.rows is not None:
            return self.rows[index].float()
        return self._answer(index, view).clone()


def autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    """bf16 autocast where the spec asks for it; weights, losses and the optimiser stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.precision == "bf16")
