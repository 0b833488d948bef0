"""What a finished student comes to while the class prior is taken out of its logits, step by step:
``adjust_logits`` at each tau, and at that of ``fit_tau``, on the test images."""

import errno
import json
from typing import Any

import numpy as np

from . import files
from .adjust import adjust_logits, fit_tau
from .data import LongTailed
from .methods import METHODS
from .runs import RunRecord, Store, pick_device
from .train import predict

TAUS = tuple(k / 4 for k in range(9))  # 0 to 2


def _known(store: Store, record: RunRecord) -> dict[str, Any]:
    """What was computed once and lies beside the record."""
    path = record.folder / "adjusted.json"
    about = {"model_sha256": record.values["model_sha256"], "tau": list(TAUS)}
    try:
        found = files.unsealed(json.loads(path.read_text()))
        if found["model_sha256"] != about["model_sha256"]:
            raise ValueError("it is of another network")
        return found if found["tau"] == about["tau"] else about
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        kept = store.model_path(record.spec).exists()
        files.set_aside(path, error, "made anew" if kept else "its network is not there any more")
    return about


def known_or_kept(store: Store, record: RunRecord) -> list[str]:
    """What of ``_values`` there is: what lies there or, where the network is kept, all of it."""
    if record.diverged:
        return []
    if store.model_path(record.spec).exists():
        return ["correct", "fitted"]
    return sorted({"correct", "fitted"} & _known(store, record).keys())


def _values(
    store: Store, record: RunRecord, data: LongTailed | None, device: str, key: str
) -> dict[str, Any]:
    """``_known``, completed and written where ``key`` is not in it and the network is kept."""
    found = _known(store, record)
    kept = store.model_path(record.spec).exists()
    if key in found or not kept or data is None or (data.counts < 1).any():
        return found
    model = store.load_model(record.spec).to(pick_device(device))
    logits = predict(model, data, data.test_images, record.spec).cpu()
    own, labels = float(METHODS[record.spec.method].balanced), data.test_labels
    seen = labels.bincount(minlength=len(data.counts))

    def correct(tau: float) -> list[int]:
        right = adjust_logits(logits, data.counts, tau - own).argmax(1) == labels
        return labels[right].bincount(minlength=len(seen)).tolist()

    if "correct" not in found:
        found["correct"] = [correct(tau) for tau in TAUS]
    found["fitted"] = None
    if data.counts.min() < data.counts.max():  # else there is no prior
        tau = round(own + fit_tau(logits, data.counts, seen), 4)
        found["fitted"] = {"tau": tau, "correct": correct(tau)}
    try:
        files.write_atomic(record.folder / "adjusted.json", json.dumps(files.sealed(found)) + "\n")
    except OSError as error:  # in a read-only folder computed at each call
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    return found


def adjusted_counts(
    store: Store, record: RunRecord, data: LongTailed | None, device: str
) -> np.ndarray | None:
    """Correct test images a class at each of TAUS, [T, C]; None where the network is not kept.

    tau counts from the biased space for every method alike: a student that balanced softmax has
    trained stands at tau = 1 as it is. What was computed once lies beside the record; without
    data there is no more than that. device: auto, cpu or cuda, asked for only where something is
    to be computed.
    """
    found = _values(store, record, data, device, "correct")
    return np.asarray(found["correct"]) if "correct" in found else None


def fitted_counts(
    store: Store, record: RunRecord, data: LongTailed | None, device: str
) -> tuple[float, np.ndarray] | None:
    """tau by ``fit_tau`` from the test images' logits and class sizes, on the scale of
    ``adjusted_counts``, and the correct images a class [C] at it; None where neither is known nor
    the network kept, or where classes are all as large."""
    fit = _values(store, record, data, device, "fitted").get("fitted")
    return (fit["tau"], np.asarray(fit["correct"])) if fit else None
