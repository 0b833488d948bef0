"""Post-hoc logit adjustment: the class prior taken out of a student that is already trained.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1: cross-entropy on a
long tail learns p(y | x), in proportion to p(y) p(x | y), so that on a balanced test set
argmax z - tau log pi is the better answer, at tau = 1 the consistent one. It needs no training, and
it is a rival of every loss that corrects the same bias while training.
"""

import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import files
from .data import LongTailed
from .groups import whole_numbers
from .methods import METHODS
from .runs import RunRecord, Store
from .train import predict

TAUS = tuple(k / 4 for k in range(9))  # 0 to 2


def adjust_logits(logits: Tensor, counts: Tensor | Sequence[int], tau: float = 1.0) -> Tensor:
    """logits [B, C] - tau log pi, with pi = counts / sum(counts) of the training images [C].

    tau      0 leaves the logits, 1 removes the prior. Menon et al., ICLR 2021, equation 9.
    returns  [B, C], at least float32: in half precision scores would tie, and a tie is the head's
    Raises ValueError where counts are not whole numbers, one a class, tau is not finite, or a class
    has no image: its prior has no logarithm.
    """
    counts = whole_numbers("counts", counts)
    if len(counts) != logits.shape[-1]:
        raise ValueError(f"counts has {len(counts)} classes, the logits {logits.shape[-1]}")
    if not math.isfinite(tau):
        raise ValueError(f"tau is {tau!r}; it must be finite")
    if (counts < 1).any():
        empty = (counts < 1).nonzero().flatten().tolist()
        raise ValueError(f"counts: classes {empty} have no image, so their prior cannot be removed")
    prior = (counts.double() / counts.sum()).log().to(logits.device)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype) - (tau * prior).to(dtype)


def has_curve(store: Store, record: RunRecord) -> bool:
    """Whether ``adjusted_counts`` of a run has something to go by."""
    return (record.folder / "adjusted.json").exists() or store.model_path(record.spec).exists()


def adjusted_counts(
    store: Store, record: RunRecord, data: LongTailed, device: torch.device
) -> np.ndarray | None:
    """Correct test images a class at each of TAUS, [T, C]; None where the network is not kept.

    tau counts from the biased space for every method alike: a student that balanced softmax has
    trained stands at tau = 1 as it is. What was computed once lies beside the record.
    """
    path = record.folder / "adjusted.json"
    about = {"model_sha256": record.values["model_sha256"], "tau": list(TAUS)}
    try:
        kept = files.unsealed(json.loads(path.read_text()))
        if {key: kept[key] for key in about} != about:
            raise ValueError("it is of another network or other values of tau")
        return np.asarray(kept["correct"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        print(f"{path}: damaged ({error}); made anew", flush=True)
    spec = record.spec
    if not store.model_path(spec).exists() or (data.counts < 1).any():
        return None
    model = store.load_model(spec).to(device)
    logits = predict(model, data, data.test_images, spec).cpu()
    own, labels = float(METHODS[spec.method].balanced), data.test_labels
    right = [labels[adjust_logits(logits, data.counts, tau - own).argmax(1) == labels]
             for tau in TAUS]  # fmt: skip
    correct = torch.stack([one.bincount(minlength=len(data.counts)) for one in right])
    values = files.sealed(about | {"correct": correct.tolist()})
    files.write_atomic(path, json.dumps(values) + "\n")
    return correct.numpy()
