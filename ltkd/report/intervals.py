"""Means with their intervals, and what these say.

Two kinds of uncertainty are kept apart. *Over seeds*: t intervals with n - 1 degrees of freedom; a
seed varies the student's initialisation, order and views, so they hold for the one split and the
one teacher of the study. *Over test images*: a bootstrap that resamples the test set within each
class and leaves the trained networks as they are. Every table says which of the two it shows,
with n.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..groups import GROUPS

LEVEL = 0.95
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
METRICS = ("all", *GROUPS)


def number(value: float, digits: int, sign: str = "-") -> str:
    """The number as text, with a true minus; a tie in the last place falls one way, however the
    value was summed."""
    return f"{round(value, 9):{sign}.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; n = 1 has none (low and high are NaN), n = 0 means: not run."""

    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0

    @classmethod
    def of(cls, row: Any) -> "Interval":
        return cls(float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"]))

    def plus_minus(self, digits: int = 1) -> str:
        """'51.1 ± 0.3 (5)': the half-width of the interval, n in brackets; one value has none, nor
        have equal ones."""
        mean = number(self.mean, digits)
        if self.n < 2:
            return f"{mean} (1)" if self.n else "—"
        if not self.has_width:
            return f"{mean} ({self.n}, equal)"
        return f"{mean} ± {number((self.high - self.low) / 2, digits)} ({self.n})"

    def difference(self) -> str:
        """'+2.1 [0.3, 3.9]'; equal values have no interval to show."""
        if not self.n:
            return "—"
        ends = ", ".join(number(end, 1) for end in (self.low, self.high))
        if not self.has_width:
            ends = f"{self.n}, equal" if self.n > 1 else "no interval"
        ends = f"[{ends}]" if self.has_width else f"({ends})"
        return f"{number(self.mean, 1, '+')} {ends}"

    @property
    def side(self) -> str:
        """On which side of zero the whole interval lies; one without width, as of seeds that are
        all equal, says nothing."""
        if not self.has_width:
            return "not resolved"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not resolved"

    @property
    def has_width(self) -> bool:
        """Whether there is an interval, of more than rounding's width."""
        return self.high - self.low > 1e-9


def t_interval(values: Iterable[float]) -> Interval:
    """Student's t interval of the mean, n - 1 degrees of freedom; missing values do not count."""
    x = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    if len(x) < 2:
        return Interval(mean=float(x[0]), n=1) if len(x) else Interval()
    half = stats.t.ppf(TAILS[1], len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(x.mean(), x.mean() - half, x.mean() + half, len(x))


def prediction(values: Iterable[float], m: int) -> Interval:
    """Where the mean of ``m`` new seeds falls in 95 of 100 cases: the t interval of the mean, wider
    by sqrt(1 + n / m) for the new seeds' own scatter. Seeds that are all equal, as with a handful
    of right answers in the tail, say nothing of it: there is none (low and high are NaN)."""
    gap = t_interval(values)
    half = (gap.high - gap.mean) * np.sqrt(1 + gap.n / m) if gap.has_width else np.nan
    return Interval(gap.mean, gap.mean - half, gap.mean + half, gap.n)


def verdict(gap: Interval, margin: float | None = None) -> str:
    """confirmed, contradicted or not resolved, from the interval of a difference.

    That it is higher: on which side of zero the whole interval lies. With a margin, that it is
    equal: whether it lies within +-margin (confirmed) or wholly outside (contradicted).
    """
    if margin is None:
        yes, no = gap.side == "higher", gap.side == "lower"
    else:
        yes = gap.has_width and -margin <= gap.low and gap.high <= margin
        no = gap.has_width and (gap.low > margin or gap.high < -margin)
    return "confirmed" if yes else "contradicted" if no else "not resolved"


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, draws: int = 1000
) -> pd.DataFrame:
    """Percentile interval over test images, resampled within each class; networks stay as they are.

    scores [N]: 0 or 1 an image, or a mean over seeds, or a difference of such means; labels [N];
    groups [C]: class -> 0, 1, 2. Tidy, in percent: metric, mean, low, high, n (images).
    """
    rng, sizes = np.random.default_rng(0), np.bincount(labels, minlength=len(groups))
    means = np.empty((draws + 1, len(groups)))  # the first row is the sample itself
    for c, size in enumerate(sizes):
        own = np.asarray(scores, dtype=float)[labels == c]
        means[0, c], means[1:, c] = own.mean(), own[rng.integers(size, size=(draws, size))].mean(1)
    rows = []
    for metric in METRICS:
        chosen = groups >= 0 if metric == "all" else groups == GROUPS.index(metric)
        if chosen.any():
            weights = sizes[chosen] if metric == "all" else None
            value = 100 * np.average(means[:, chosen], axis=1, weights=weights)
            low, high = np.quantile(value[1:], TAILS)
            interval = Interval(value[0], low, high, int(sizes[chosen].sum()))
            rows.append({"metric": metric, **vars(interval)})
    return pd.DataFrame(rows)
