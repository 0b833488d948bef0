"""Made-up rows of ``Study.results`` and ``Study.adjusted`` for the tests of tables."""

import pandas as pd

from ltkd.report.intervals import METRICS


def runs(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """A row a method and seed; all metrics hold the same value."""
    rows = [
        {"method": m, "seed": s, "ours": False, "variant": "", "run": f"{m}{s}", "holdout": 0,
         "gamma": 20.0, "teacher": ""}
        | dict.fromkeys((*METRICS, "best_all"), v) | columns
        for m, series in values.items() for s, v in enumerate(series)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def adjusted() -> pd.DataFrame:
    """KD gains 4 points on every metric at tau = 1; balanced softmax stands there as trained."""
    parts = [
        runs({"kd": [50.0, 52.0]}, tau=0.0, as_trained=True, label="KD"),
        runs({"kd": [54.0, 56.0]}, tau=1.0, as_trained=False, label="KD"),
        runs({"balanced_softmax": [55.0, 55.0]}, tau=1.0, as_trained=True, label="BS"),
    ]
    return pd.concat(parts, ignore_index=True)
