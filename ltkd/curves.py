"""What a finished student comes to while the class prior is taken out of its logits, step by step:
``adjust_logits`` at each tau, on the test images."""

import json
from typing import Any

import numpy as np
import torch

from . import files
from .adjust import adjust_logits
from .data import LongTailed
from .methods import METHODS
from .runs import RunRecord, Store, pick_device
from .train import predict

TAUS = tuple(k / 4 for k in range(9))  # 0 to 2


def has_curve(store: Store, record: RunRecord) -> bool:
    """Whether ``adjusted_counts`` of a run has something to go by."""
    return (record.folder / "adjusted.json").exists() or store.model_path(record.spec).exists()


def _about(record: RunRecord) -> dict[str, Any]:
    return {"model_sha256": record.values["model_sha256"], "tau": list(TAUS)}


def known_counts(store: Store, record: RunRecord) -> np.ndarray | None:
    """``adjusted_counts`` as they lie beside the record; None where nothing was computed."""
    path, about = record.folder / "adjusted.json", _about(record)
    try:
        found = files.unsealed(json.loads(path.read_text()))
        if {key: found[key] for key in about} != about:
            raise ValueError("it is of another network or other values of tau")
        return np.asarray(found["correct"])
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        kept = store.model_path(record.spec).exists()
        files.set_aside(path, error, "made anew" if kept else "its network is not there any more")
    return None


def adjusted_counts(
    store: Store, record: RunRecord, data: LongTailed, device: str
) -> np.ndarray | None:
    """Correct test images a class at each of TAUS, [T, C]; None where the network is not kept.

    tau counts from the biased space for every method alike: a student that balanced softmax has
    trained stands at tau = 1 as it is. What was computed once lies beside the record. device:
    auto, cpu or cuda, asked for only where something is to be computed.
    """
    if (known := known_counts(store, record)) is not None:
        return known
    if not store.model_path(record.spec).exists() or (data.counts < 1).any():
        return None
    model = store.load_model(record.spec).to(pick_device(device))
    logits = predict(model, data, data.test_images, record.spec).cpu()
    own, labels = float(METHODS[record.spec.method].balanced), data.test_labels
    right = [labels[adjust_logits(logits, data.counts, tau - own).argmax(1) == labels]
             for tau in TAUS]  # fmt: skip
    correct = torch.stack([one.bincount(minlength=len(data.counts)) for one in right])
    values = files.sealed(_about(record) | {"correct": correct.tolist()})
    files.write_atomic(record.folder / "adjusted.json", json.dumps(values) + "\n")
    return correct.numpy()
