"""Statistics and tables: intervals, paired differences, verdicts, ours beside the paper's.

Two kinds of uncertainty are kept apart. *Over seeds*: t intervals with n - 1 degrees of freedom; a
seed varies the student's initialisation, order and views, so they hold for the one split and the
one teacher of the study. *Over test images*: a bootstrap that resamples the test set within each
class and leaves the trained networks as they are. Every table says which of the two it shows,
with n.

Functions take the rows of one setting (data set, gamma, pair, schedule): see ``settings``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy import stats
from sklearn.linear_model import PoissonRegressor

from ..adjust import adjust_logits, fit_tau
from ..files import many
from ..groups import GROUPS, class_groups
from ..losses.decomposition import group_log_probs
from ..losses.ltkd import log_batch_mass, rebalance
from ..methods import METHODS
from . import paper
from .paper import Setting

LEVEL = 0.95
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
METRICS = ("all", *GROUPS)
BEST = "all, best test epoch †"
LABELS = {name: method.label for name, method in METHODS.items()} | {
    "baseline": "KD (baseline)",
    "cross_biased": "cross, biased", "cross_rebalanced": "cross, rebalanced",
    "within_only": "within only", "cross_and_within": "cross + within (LTKD)"}  # fmt: skip

PLAIN = "kd_ce1"  # plain distillation at LTKD's outer weights: what the losses are held against
REMOVED = ", prior removed"  # the name of a method whose students are adjusted afterwards
LABELS |= {f"{name}_removed": method.label + REMOVED for name, method in METHODS.items()}
OURS = {method.label for method in METHODS.values() if method.ours}


def _shown(value: float, digits: int, sign: str = "-") -> str:
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
        mean = _shown(self.mean, digits)
        if self.n < 2:
            return f"{mean} (1)" if self.n else "—"
        if not self.has_width:
            return f"{mean} ({self.n}, equal)"
        return f"{mean} ± {_shown((self.high - self.low) / 2, digits)} ({self.n})"

    def difference(self) -> str:
        """'+2.1 [0.3, 3.9]'; equal values have no interval to show."""
        if not self.n:
            return "—"
        ends = ", ".join(_shown(end, 1) for end in (self.low, self.high))
        if not self.has_width:
            ends = f"{self.n}, equal" if self.n > 1 else "no interval"
        ends = f"[{ends}]" if self.has_width else f"({ends})"
        return f"{_shown(self.mean, 1, '+')} {ends}"

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


def settings(study: Any, part: str) -> Iterator[tuple[Setting, pd.DataFrame]]:
    """Each setting of a study's part, with its rows.

    Runs without a teacher join every pair of their student.
    """
    runs = study.results(part)
    if runs.empty:
        return
    same = ["dataset", "gamma", "student", "epochs"]
    for key in runs.loc[runs["teacher"] != "", [*same, "teacher"]].drop_duplicates().itertuples():
        shared = (runs[same] == [getattr(key, name) for name in same]).all(axis=1)
        rows = runs[shared & runs["teacher"].isin(["", key.teacher])]
        where = (key.dataset, key.gamma, key.teacher, key.student, key.epochs)
        yield Setting(*where, schedule=study.schedule), rows


def own_teacher(setting: Setting, teachers: pd.DataFrame) -> pd.Series:
    """The row of the one teacher that the students of ``setting`` share."""
    same = (teachers["student"] == setting.teacher) & (teachers["gamma"] == setting.gamma)
    if same.sum() != 1:
        raise ValueError(f"teacher of {setting.title}: {same.sum()} rows, should be 1")
    return teachers[same].iloc[0]


def named(runs: pd.DataFrame, by: str) -> pd.DataFrame:
    """``runs`` with the display label of what ``by`` compares: method, variant or n_groups."""
    if by == "n_groups":
        return runs.assign(label=[f"n\u00a0=\u00a0{int(n)}" for n in runs[by]])
    return runs.assign(label=runs[by].map(LABELS).fillna(runs[by]))


def _tidy(runs: pd.DataFrame, by: str, metrics: Sequence[str], about: str) -> pd.DataFrame:
    rows = []
    for key, part in runs.groupby(by, sort=False):
        same = {by: key, "label": part["label"].iloc[0], about: part[about].iloc[0]}
        rows += [{**same, "metric": m, **vars(t_interval(part[m]))} for m in metrics]
    columns = dict.fromkeys([by, "label", about, "metric", "mean", "low", "high", "n"])
    return pd.DataFrame(rows, columns=[*columns])


def summarise(
    runs: pd.DataFrame, by: str = "method", metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Mean and t interval over seeds. Tidy: by, label, ours, metric, mean, low, high, n."""
    return _tidy(named(runs, by), by, metrics, "ours")


def paired(
    runs: pd.DataFrame, reference: Any, by: str = "method", metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Differences to ``reference`` within each seed (one split, one teacher), with t intervals.

    Tidy: by, label, reference, metric, mean, low, high, n; n counts the seeds that both have. Empty
    when the reference did not run.
    """
    runs = named(runs, by).set_index("seed")
    if runs.set_index(by, append=True).index.has_duplicates:
        raise ValueError(f"by = {by!r}: a seed stands there twice; give the rows of one setting")
    base, others = runs[runs[by] == reference], runs[runs[by] != reference]
    if base.empty:
        return _tidy(others[:0].assign(reference=""), by, metrics, "reference")
    gaps = others[list(metrics)] - base[list(metrics)].reindex(others.index)
    return _tidy(others.assign(reference=base["label"].iloc[0], **gaps), by, metrics, "reference")


def marked(label: str) -> str:
    """A row's label, of a method or a setting; methods that the paper does not have say so."""
    ours = f"{label}, ".startswith(tuple(f"{one}, " for one in OURS)) or label.endswith(REMOVED)
    return f"{label} (ours)" if ours else label


def minus(better: str, worse: str) -> str:
    """'LTKD − (KD, prior removed)': of a label with a comma one must see where it ends."""
    return " − ".join(f"({label})" if "," in label else label for label in (better, worse))


def interval_of(tidy: pd.DataFrame, **where: Any) -> Interval:
    """The one interval of a tidy frame that matches; n = 0 when there is none."""
    for column, value in where.items():
        tidy = tidy[tidy[column] == value]
    if len(tidy) > 1:
        raise ValueError(f"{where}: {len(tidy)} rows match, should be one")
    return Interval.of(tidy.iloc[0]) if len(tidy) else Interval()


def wide(tidy: pd.DataFrame) -> pd.DataFrame:
    """A plain table of strings, a row a label, a column a metric; differences come with n."""
    cells: dict[str, dict[str, Any]] = {}
    for row in tidy.to_dict("records"):
        gap, line = Interval.of(row), cells.setdefault(marked(str(row["label"])), {})
        if "reference" in row:
            line |= {f"minus {row['reference']}: {row['metric']}": gap.difference()}
            line["n"] = max(gap.n, line.pop("n", 0))
        else:
            line[BEST if row["metric"] == "best_all" else row["metric"]] = gap.plus_minus()
    return pd.DataFrame.from_dict(cells, orient="index")


def accuracies(runs: pd.DataFrame, by: str = "method") -> pd.DataFrame:
    """The main table: last epoch, 'mean ± half-width (n)'; best test epoch as a marked column."""
    return wide(summarise(runs, by, (*METRICS, "best_all")))


def as_stated(runs: pd.DataFrame, adjusted: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What a row states of its runs: as trained ("") and, where all their curves are known, with
    the prior removed (REMOVED)."""
    after = prior_removed(adjusted)
    after = after[after["run"].isin(runs["run"])]
    return {"": runs} | ({REMOVED: after} if len(after) == len(runs) else {})


def predicted(
    runs: pd.DataFrame, adjusted: pd.DataFrame, m: int
) -> Iterator[tuple[str, str, Interval]]:
    """``prediction`` for the mean of m new seeds of a row, overall and on the tail: how and what
    of ``as_stated``, metric, interval."""
    for how, part in as_stated(runs, adjusted).items():
        for metric in ("all", "tail"):
            yield how, metric, prediction(part[metric], m)


def to_reproduce(runs: pd.DataFrame, adjusted: pd.DataFrame) -> pd.DataFrame:
    """Where a row's mean should fall when its seeds are run again elsewhere."""
    cells: dict[str, dict[str, str]] = {}
    for method, rows in runs.groupby("method", sort=False):
        cells[str(method)] = {}
        for how, metric, gap in predicted(rows, adjusted, len(rows)):
            text = "one seed: no interval" if len(rows) == 1 else "seeds equal: no interval"
            if gap.has_width:
                text = f"{_shown(gap.low, 1)} to {_shown(gap.high, 1)}"
            cells[str(method)][metric + how] = text
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("row").fillna("—")


def note(runs: pd.DataFrame, by: str = "method") -> Markdown:
    """What the numbers of a table are, and what their intervals leave out."""
    counts = runs.groupby(by)["seed"].nunique()
    n = " to ".join(str(n) for n in sorted({counts.min(), counts.max()}))
    interval = (
        "± and [ ] are 95 % t intervals over seeds (n − 1 degrees of freedom), conditional on the "
        "one split and the one teacher; differences are paired by seed"
    )
    held = runs["holdout"].max()
    own = (
        "the folder's test images" if "folder" in set(runs["dataset"]) else "the balanced test set"
    )
    images = f"{many(int(held), 'training image')} a class, held out" if held else own
    return Markdown(
        f"*Top-1 accuracy in percent on {images}, last epoch; head, medium and tail "
        f"are means over classes; n = {n} seed{'s' * (n != '1')}; "
        f"{interval if counts.max() > 1 else 'one seed gives no interval'}. "
        "† The epoch is picked on the very images that test it, which leaks them: no result. "
        "(ours): a rival that the paper does not have.*"
    )


def sentence(row: Mapping[Any, Any]) -> str:
    """'LTKD − KD on the tail: +2.1 points [0.3, 3.9], n = 5 seeds, paired: higher'."""
    gap = Interval.of(row)
    where = "overall" if row["metric"] == "all" else f"on the {row['metric']}"
    value, _, ends = gap.difference().partition(" ")
    return (
        f"**{minus(row['label'], row['reference'])}** {where}: {value} points {ends}, "
        f"n = {many(gap.n, 'seed')}, paired: **{gap.side}**"
    )


def say(differences: pd.DataFrame, *metrics: str) -> Markdown:
    """One sentence a difference, as a list."""
    rows = differences[differences["metric"].isin(metrics or METRICS)].to_dict("records")
    lines = "\n".join(f"- {sentence(row)}" for row in rows)
    return Markdown(lines or "*Not tested here: the study has no such runs.*")


def with_curves(study: Any) -> Iterator[tuple[Setting, pd.DataFrame, pd.DataFrame]]:
    """``settings`` of the distillation, each with ``Study.adjusted`` of its runs and teacher."""
    both = pd.concat([study.adjusted(part) for part in ("teachers", "distillation")])
    teachers = study.results("teachers")
    for setting, runs in settings(study, "distillation"):
        own = [own_teacher(setting, teachers)["run"], *runs["run"]]
        yield setting, runs, both[both["run"].isin(own)]


def not_kept(runs: pd.DataFrame, adjusted: pd.DataFrame, by: str = "label") -> list[Markdown]:
    """A line that names the methods (or variants) of ``runs`` that lack a row in ``adjusted``, for
    a network is not kept."""
    names = runs.loc[~runs["run"].isin(adjusted["run"]), by].unique()
    text = "*Not known, or not for all seeds, as networks are not kept: "
    return [Markdown(f"{text}{'; '.join(names)}.*")] if len(names) else []


def prior_removed(adjusted: pd.DataFrame) -> pd.DataFrame:
    """Of ``Study.adjusted`` the rows at tau = 1, as methods of their own: *_removed.

    Students of balanced softmax are left out: at tau = 1 they stand as they are trained.
    """
    rows = adjusted[(adjusted["tau"] == 1) & ~adjusted["as_trained"]]
    return rows.assign(method=rows["method"] + "_removed", label=rows["label"] + REMOVED, ours=True)


def joined(runs: pd.DataFrame, adjusted: pd.DataFrame) -> pd.DataFrame:
    """The runs of a setting and, as further methods, the same with the prior removed."""
    return pd.concat([runs, prior_removed(adjusted)], ignore_index=True)


def after_training(adjusted: pd.DataFrame, by: str = "label") -> pd.DataFrame:
    """A row a method (or variant): all classes as trained, then everything, the prior removed."""
    rows: dict[str, dict[str, str]] = {}
    for label, part in adjusted.groupby(by, sort=False):
        as_trained, one = part[part["as_trained"]], part[part["tau"] == 1]
        row = {"all, as trained": t_interval(as_trained["all"]).plus_minus()}
        rows[marked(str(label))] = row | {m: t_interval(one[m]).plus_minus() for m in METRICS}
    return pd.DataFrame.from_dict(rows, orient="index")


def chosen(runs: pd.DataFrame, adjusted: pd.DataFrame) -> pd.DataFrame:
    """The best of each method's settings over all classes: as trained, and with tau chosen too.

    runs, adjusted: ``results`` and ``adjusted`` of a sweep in one setting. tau counts from the
    student's biased space, so that one trained with balanced softmax stands at 1. On held-out
    images this is a choice, on test images it would be a leak.
    """
    tried = {"": runs.assign(tau="as trained"), ", τ chosen too": adjusted}
    rows = {}
    for label, (how, frame) in product(runs["label"].unique(), tried.items()):
        part = frame[frame["label"] == label]
        if part.empty:
            continue
        means = part.groupby(["variant", "tau"], sort=False)[list(METRICS)].mean()
        over, where = means["all"].groupby("variant").max(), means["all"].idxmax()
        variant, tau = where
        rows[marked(label) + how] = {
            "setting": variant.removeprefix(f"{label}, "),
            "τ": tau,
            **{m: f"{means.loc[where, m]:.1f}" for m in METRICS},
            "all, over the settings (n)": f"{over.min():.1f} to {over.max():.1f} ({len(over)})",
        }
    return pd.DataFrame.from_dict(rows, orient="index").fillna("—")


def plane(runs: pd.DataFrame) -> pd.DataFrame:
    """Of a sweep LTKD's settings that differ in alpha and beta alone, the largest such set; empty
    where these do not span a plane."""
    own = runs[runs["method"] == "ltkd"].drop_duplicates("run")  # one setting may have two names
    same = own.groupby(["ce_weight", "kd_weight", "temperature", "rebalance"])
    parts = [part for _, part in same if part[["alpha", "beta"]].nunique().min() > 1]
    return max(parts, key=len, default=own[:0])


def not_reached(adjusted: pd.DataFrame) -> list[Markdown]:
    """A line that names what ``at_equal_head`` leaves out: curves that do not reach its height."""
    _, missed = _at_height(adjusted, PLAIN)
    if not missed:
        return []
    seeds: dict[str, list[str]] = {}
    for label, seed in missed:
        seeds.setdefault(label, []).append(str(seed))
    names = "; ".join(f"{label} (seed {', '.join(each)})" for label, each in seeds.items())
    return [Markdown(f"*Left out, for the curve does not reach that head accuracy: {names}.*")]


def at_equal_head(adjusted: pd.DataFrame, reference: str = PLAIN) -> pd.DataFrame:
    """Whether a method's curve lies above the reference's: ``paired`` differences at one height.

    In each seed every curve is read, between its values of tau, where its head accuracy is that
    of the reference with the prior removed; values of tau with the same head count as one point,
    their mean. No tau is chosen. Curves that do not reach it are left out: ``not_reached``.
    """
    frame, _ = _at_height(adjusted, reference)
    return paired(frame, reference, metrics=["all", "medium", "tail"])


def _at_height(
    adjusted: pd.DataFrame, reference: str
) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """Every student's curve at the reference's head accuracy; (label, seed) of the others."""
    one = adjusted[(adjusted["method"] == reference) & (adjusted["tau"] == 1)]
    height, rows, metrics = one.set_index("seed")["head"], [], ["all", "medium", "tail"]
    students = adjusted[adjusted["seed"].isin(height.index) & (adjusted["method"] != "teacher")]
    missed = []
    for key, part in students.groupby("run", sort=False):
        course, about = part.groupby("head")[metrics].mean(), part.iloc[0]
        at = height[about["seed"]]
        if course.index[0] <= at <= course.index[-1]:
            read = {m: np.interp(at, course.index, course[m]) for m in metrics}
            rows.append({"run": key, **about[["method", "ours", "seed"]], **read})
        else:
            missed.append((LABELS.get(about["method"], about["method"]), about["seed"]))
    return pd.DataFrame(rows, columns=["run", "method", "ours", "seed", *metrics]), missed


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


def _right(runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any) -> np.ndarray:
    """Share of the runs that have each test image right [N]."""
    labels = np.asarray(data.test_labels)
    return np.mean([np.asarray(predictions[run]) == labels for run in runs["run"]], axis=0)


def over_images(
    runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any
) -> pd.DataFrame:
    """Accuracy of each label, mean over its seeds, with its bootstrap interval over test images."""
    labels, groups, rows = np.asarray(data.test_labels), np.asarray(data.groups(3)), {}
    for label, part in runs.groupby("label", sort=False):
        found = bootstrap(_right(part, predictions, data), labels, groups).to_dict("records")
        rows[label] = {r["metric"]: Interval.of(r).difference().removeprefix("+") for r in found}
    return pd.DataFrame.from_dict(rows, orient="index")


def both_intervals(
    runs: pd.DataFrame,
    predictions: Mapping[str, np.ndarray],
    data: Any,
    method: str,
    reference: str,
) -> pd.DataFrame:
    """One difference with its two intervals side by side: over seeds, and over test images."""
    ours, theirs = (runs[runs["method"] == name] for name in (method, reference))
    ours, theirs = (
        ours[ours["seed"].isin(theirs["seed"])],
        theirs[theirs["seed"].isin(ours["seed"])],
    )
    if ours.empty:
        return pd.DataFrame()
    score = _right(ours, predictions, data) - _right(theirs, predictions, data)
    images = bootstrap(score, np.asarray(data.test_labels), np.asarray(data.groups(3)))
    gaps, rows = paired(pd.concat([ours, theirs]), reference), {}
    for row in images.to_dict("records"):
        gap = interval_of(gaps, method=method, metric=row["metric"])
        rows[row["metric"]] = {
            "over seeds (t, paired)": gap.difference(),
            "seeds": gap.n,
            "over test images (bootstrap)": Interval.of(row).difference(),
            "images": row["n"],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def beside_paper(
    runs: pd.DataFrame, setting: Setting, table: str, by: str = "method", others: bool = True
) -> tuple[Markdown, pd.DataFrame]:
    """A heading that says whether the paper's setting is ours; the table, differences only then.

    ``others`` adds the paper's rows that did not run here.
    """
    heading, cells = paper.beside(setting, table)
    same = paper.comparable(setting, table)
    values = cells.set_index(["cell", "metric"])["top1"]
    rows: dict[str, dict[str, str]] = {}
    theirs, digits = ("paper", 2) if same else ("paper, other setting", 1)
    metrics = [m for m in ("tail", "all") if m in set(cells["metric"])]
    for row in summarise(runs, by, metrics).to_dict("records"):
        ours, metric = Interval.of(row), row["metric"]
        line = rows.setdefault(marked(row["label"]), {})
        value = values.get((str(row[by]), metric), np.nan)
        line |= {f"{metric}: ours": ours.plus_minus(digits), f"{metric}: {theirs}": f"{value:.2f}"}
        if same:
            line[f"{metric}: ours − paper"] = _shown(ours.mean - value, 2, "+")
    for cell in cells["cell"].unique() if others else ():
        if cell not in {*runs[by].astype(str), "teacher"}:
            label = f"n = {cell}" if by == "n_groups" else LABELS.get(cell, cell)
            reported = values[cell].items()
            rows[f"{label} (not run here)"] = {f"{m}: {theirs}": f"{v:.2f}" for m, v in reported}
    shown = pd.DataFrame.from_dict(rows, orient="index").replace(["nan", "+nan"], "—")
    return Markdown(heading), shown.fillna("—")


def against_paper(runs: pd.DataFrame, setting: Setting, table: str) -> pd.DataFrame:
    """``summarise`` and the paper's value of the cells that both have; empty in another setting."""
    if not paper.comparable(setting, table):
        return pd.DataFrame()
    cells = paper.beside(setting, table)[1].rename(columns={"cell": "method", "top1": "paper"})
    ours = summarise(runs, metrics=("all", "tail"))
    return ours.merge(cells[["method", "metric", "paper"]], on=["method", "metric"])


LTKD_CELLS = {
    "main": "ltkd", "secondary": "ltkd", "three_groups": "ltkd",
    "ablations": "cross_and_within"}  # fmt: skip


def nearest_to_paper(runs: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """LTKD's settings less the paper's cells, in points, the nearest first; empty where the paper
    has none of this very setting.

    A description: it looks at the test images, so that no setting may be chosen by it.
    """
    told = {
        row.metric: row.top1
        for table, cell in LTKD_CELLS.items() if paper.comparable(setting, table)
        for row in paper.beside(setting, table)[1].query("cell == @cell").itertuples()
    }  # fmt: skip
    metrics = [metric for metric in METRICS if metric in told]
    rows: dict[str, dict[str, float]] = {}
    for row in summarise(runs[runs["method"] == "ltkd"], "variant", metrics).to_dict("records"):
        rows.setdefault(row["label"], {})[row["metric"]] = row["mean"] - told[row["metric"]]
    away = pd.DataFrame.from_dict(rows, orient="index", columns=metrics)
    return away.sort_values(metrics[:1], key=abs).round(2) if metrics else away


def classes(data: Any) -> pd.DataFrame:
    """A row a class: class_id, class_name, count (training images), group (0 head, 1, 2)."""
    columns = {"class_name": data.class_names, "count": data.counts, "group": data.groups(3)}
    frame = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    return frame.rename_axis("class_id").reset_index()


def group_table(data: Any) -> pd.DataFrame:
    """A row a group: classes, training and test images, and what one test image is worth."""
    frame = classes(data)
    frame["test"] = np.bincount(np.asarray(data.test_labels), minlength=len(frame))
    groups = frame.groupby("group")
    table = groups["count"].agg(["size", "sum", "max", "min"]).assign(test=groups["test"].sum())
    table.columns = ["classes", "training images", "largest", "smallest", "test images"]
    table["one test image, points"] = (100 / table["test images"]).round(2)
    return table.set_axis([GROUPS[group] for group in table.index])


def completeness(study: Any, *parts: str) -> Markdown:
    """How many runs of each part finished, and for each of the others its id and the reason."""
    told: list[str] = []
    holes: dict[str, str] = {}  # by run: two parts may share one
    for part in parts:
        done, missing = len(study.results(part)), study.missing(part)
        name = part.replace("_", " ").capitalize()
        some = f"{done} of {done + len(missing)} runs finished"
        told.append(f"{name}: {some if done or len(missing) else 'none in this study'}.")
        holes |= {run.run: f"- `{run.run}`: `{run.reason}`" for run in missing.itertuples()}
    return Markdown("\n".join([f"*{' '.join(told)}*", "", *holes.values()]))


def steps(runs: pd.DataFrame, path: Sequence[str], metric: str) -> pd.DataFrame:
    """The way along ``path`` (methods or variants), a paired difference a step.

    Cells that did not run are skipped; of the others the seeds count that all have, so that the
    steps add up. Tidy: label, method, kind (total or step), metric, start, mean, low, high, n.
    """
    cells = runs.assign(cell=runs["variant"].where(runs["variant"] != "", runs["method"]))
    path = [cell for cell in path if cell in set(cells["cell"])]
    cells = cells[cells["cell"].isin(path)]
    common = cells.groupby("seed")["cell"].nunique() == len(path)
    cells = cells[cells["seed"].map(common)]
    if cells.empty:
        return pd.DataFrame()
    means = summarise(cells, "cell", [metric]).set_index("cell")
    methods = cells.groupby("cell")["method"].first()
    rows = []
    for k, after in enumerate([*path, *path[-1:]]):
        row: dict[Any, Any] = means.loc[after].to_dict() | {"method": methods[after]}
        row |= {"kind": "total", "start": 0.0}
        if 0 < k < len(path):
            start, label = means.loc[path[k - 1], "mean"], f"→ {row['label']}"
            row |= {"label": label, "kind": "step", "start": start}
            row |= vars(interval_of(paired(cells, path[k - 1], "cell", [metric]), cell=after))
        rows.append(row)
    return pd.DataFrame(rows if len(path) > 1 else [])


def teacher_mass(
    logits: Any, labels: Any, groups: Any, batch: str, *, size: int, draws: int = 100,
    temperature: float = 4.0,
) -> pd.DataFrame:  # fmt: skip
    """Where a teacher's probability goes in batches: the share of each group in percent.

    logits [N, C], labels [N], groups [C]. batch "balanced": every class equally often (to one
    image); "long-tailed": images at random. Tidy: batch, draw, stage, group, share; the stages are
    the labels, the teacher, and the teacher as LTKD rebalances it.
    """
    rng, rows = np.random.default_rng(0), []
    labels, ids, n = np.asarray(labels), torch.as_tensor(groups), int(max(groups)) + 1
    log_g, _ = group_log_probs(torch.as_tensor(logits).double(), ids, n, temperature)
    members = [np.flatnonzero(labels == c) for c in range(len(ids))]
    for draw in range(draws):
        chosen = rng.choice(len(labels), size)
        if batch == "balanced":
            turns = [rng.permutation(len(ids)) for _ in range(-(-size // len(ids)))]
            chosen = np.array([rng.choice(members[c]) for c in np.concatenate(turns)[:size]])
        own = log_g[chosen]
        stages = {
            "labels": np.bincount(ids.numpy()[labels[chosen]], minlength=n) / size,
            "teacher": own.exp().mean(0).numpy(),
            "rebalanced": rebalance(own, log_batch_mass(own)).exp().mean(0).numpy(),
        }
        rows += [
            {"batch": batch, "draw": draw, "stage": stage, "group": GROUPS[g], "share": 100 * part}
            for stage, share in stages.items() for g, part in enumerate(share)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def batches(study: Any, pair: Any) -> pd.DataFrame:
    """``teacher_mass`` in balanced test and long-tailed training batches, at the first gamma; as
    many images a batch as LTKD's b is a sum over."""
    groups, t = study.data().groups(3), study.temperature
    kinds = {"balanced": study.teacher_logits(pair, "test"),
             "long-tailed": study.teacher_logits(pair, "train")}  # fmt: skip
    return pd.concat([teacher_mass(logits, labels, groups, kind, temperature=t, size=study.batch)
                      for kind, (logits, labels) in kinds.items()], ignore_index=True)  # fmt: skip


SPREAD = "spread over groups: biased − rebalanced, long-tailed batches"


def mass_effects(mass: pd.DataFrame) -> dict[str, Interval]:
    """What batches show of the paper's first claim, in points of probability, with the middle 95 %
    of batches; n counts batches."""
    share = mass.pivot_table(index=["batch", "draw"], columns=["stage", "group"], values="share")
    spread = {s: np.ptp(share[[s]].to_numpy(), axis=1) for s in ("teacher", "rebalanced")}
    removed = pd.Series(spread["teacher"] - spread["rebalanced"], share.index)
    excess = (share["teacher", "head"] - share["labels", "head"]).xs("balanced", level="batch")
    effects = {
        "head: teacher − labels, balanced batches": excess,
        SPREAD: removed.xs("long-tailed", level="batch"),
    }
    low, high = ({name: float(x.quantile(q)) for name, x in effects.items()} for q in TAILS)
    return {k: Interval(x.mean(), low[k], high[k], len(x)) for k, x in effects.items()}


def head_excess(logits: Any, labels: Any, groups: Any, temperature: float) -> Interval:
    """How much more of a teacher's probability is the head's than of the test images, in points,
    with its ``bootstrap`` interval; n counts images. logits [N, C], labels [N], groups [C]."""
    labels, ids = np.asarray(labels), torch.as_tensor(groups)
    log_g, _ = group_log_probs(
        torch.as_tensor(logits).double(), ids, int(ids.max()) + 1, temperature
    )
    excess = log_g.exp()[:, 0].numpy() - (ids.numpy()[labels] == 0)
    found = bootstrap(excess, labels, ids.numpy())
    return Interval.of(found[found["metric"] == "all"].iloc[0])


def corrections(
    logits: Any, counts: Any, groups: Sequence[int], *, temperature: float, size: int,
    draws: int = 100,
) -> pd.DataFrame:  # fmt: skip
    """What is taken off a teacher's logits, class by class, less its mean over the classes.

    KD from an adjusted teacher is zero at z_T - log pi, LTKD, in a batch, at z_T - T log b_G. Here
    are log pi and, for each number of groups, T log b over ``draws`` random batches of ``size``
    training images. Classes without an image are left out.

    logits [N, C] of training images, counts [C]. Tidy: by, rank (0 the largest class), count; prior
    (log pi, the mean over the class's group); mean; low, high: the middle 95 % of batches; scatter:
    the standard deviation over batches.
    """
    counts, rng = torch.as_tensor(counts), np.random.default_rng(0)
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    log_pi = (counts.double() / counts.sum()).log()[order].numpy()
    z = torch.as_tensor(logits).double()
    chosen = [torch.from_numpy(rng.choice(len(z), size, replace=False)) for _ in range(draws)]
    taken = {LABELS["kd_adjusted"]: (log_pi[None], log_pi)}
    for n in groups:
        ids = class_groups(counts, n)
        log_p, _ = group_log_probs(z, ids, n, temperature)
        log_b = torch.stack([log_batch_mass(log_p[batch]) for batch in chosen])
        prior = pd.Series(log_pi).groupby(ids[order].numpy()).transform("mean").to_numpy()
        taken[f"{LABELS['ltkd']}, n = {n}"] = temperature * log_b[:, ids[order]].numpy(), prior
    rows = []
    for by, (each, prior) in taken.items():
        each = each - each.mean(1, keepdims=True)
        low, high = np.quantile(each, TAILS, axis=0)
        rows.append(pd.DataFrame({
            "by": by, "rank": range(len(order)), "count": counts[order], "mean": each.mean(0),
            "prior": prior - prior.mean(), "low": low, "high": high, "scatter": each.std(0),
        }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def correction_strengths(taken: pd.DataFrame) -> pd.DataFrame:
    """``corrections`` in three numbers each: the slope on log pi between the groups (1: all of it),
    the distance to log pi over the classes, inside the groups too, and the scatter over batches."""
    rows, log_pi = {}, taken.groupby("by", sort=False).get_group(LABELS["kd_adjusted"])["prior"]
    for by, part in taken.groupby("by", sort=False):
        between, mean = part["prior"], part["mean"]
        rows[str(by).replace(" ", "\u00a0")] = {
            "slope between groups": (mean * between).sum() / (between**2).sum(),
            "distance to log π (rms)": ((mean.to_numpy() - log_pi) ** 2).mean() ** 0.5,
            "scatter over batches (sd)": part["scatter"].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def confusion(runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any) -> pd.DataFrame:
    """Where each group's test images go, percent over all seeds: label, true, predicted, share."""
    groups, rows = np.asarray(data.groups(3)), []
    truth = groups[np.asarray(data.test_labels)]
    for label, part in runs.groupby("label", sort=False):
        guesses = np.stack([groups[np.asarray(predictions[run])] for run in part["run"]])
        for a, b in product(np.unique(truth), range(len(GROUPS))):
            share = 100 * np.mean(guesses[:, truth == a] == b)
            rows.append({"label": label, "true": GROUPS[a], "predicted": GROUPS[b], "share": share})
    return pd.DataFrame(rows)


def class_gains(per_class: pd.DataFrame) -> pd.DataFrame:
    """What each class has more than under KD with weights 1 and 1, within a seed, in points.

    Of ``Study.per_class``, or ``at_best_share``, one setting's. Tidy: method, label, seed, rank (0
    the largest class), group, count, gain; empty where that KD did not run.
    """
    base = per_class[per_class["method"] == PLAIN] if len(per_class) else per_class
    if base.empty:
        return pd.DataFrame()
    both = per_class[per_class["method"] != PLAIN].merge(
        base[["seed", "class_id", "accuracy"]], on=["seed", "class_id"], suffixes=("", "_of_it")
    )
    ranked = base.drop_duplicates("class_id").sort_values(
        ["count", "class_id"], ascending=[False, True]
    )
    rank = dict(zip(ranked["class_id"], range(len(ranked)), strict=True))
    both = both.assign(
        rank=both["class_id"].map(rank), gain=both["accuracy"] - both["accuracy_of_it"]
    )
    columns = ["method", "label", "seed", "rank", "group", "count", "gain"]
    return both[columns].sort_values(["seed", "rank"], kind="stable", ignore_index=True)


def border_jumps(gains: pd.DataFrame, width: int = 8) -> pd.DataFrame:
    """How far ``class_gains`` jump where one group of classes ends and the next begins.

    A jump is the mean gain of the ``width`` largest classes below a border less that of the
    ``width`` smallest above it, with a t interval over seeds. Beside it the same between classes
    where no border is, mean and standard deviation over all such places. A row a method, a column a
    border; empty where a group has fewer than two times ``width`` classes.
    """
    if gains.empty or gains.groupby("group")["rank"].nunique().min() < 2 * width:
        return pd.DataFrame()
    borders = gains.groupby("group")["rank"].min().iloc[1:].tolist()
    rows: dict[str, dict[str, str]] = {}
    for label, part in gains.groupby("label", sort=False):
        each = part.pivot(index="seed", columns="rank", values="gain").to_numpy()

        def jump(at: int, each: np.ndarray = each) -> np.ndarray:
            return each[:, at : at + width].mean(1) - each[:, at - width : at].mean(1)

        free = [at for at in range(width, each.shape[1] - width + 1)
                if min(abs(at - border) for border in borders) >= width]  # fmt: skip
        elsewhere = np.array([jump(at).mean() for at in free])
        rows[marked(str(label))] = {
            f"from {above} to {below}": t_interval(jump(at)).difference()
            for at, above, below in zip(borders, GROUPS, GROUPS[1:], strict=False)
        } | {
            "elsewhere": f"{_shown(elsewhere.mean(), 1, '+')} ± {_shown(elsewhere.std(), 1)}",
            "seeds": str(len(each)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


BIAS = ("between groups", "within groups", "right group", "right class in it")


def prediction_bias(
    runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any
) -> pd.DataFrame:
    """How biased each run's answers are, between groups and within them: a row a run.

    "between groups" and "within groups", in percent, are 100 b and 100 w of a Poisson regression
    of how often each class is the answer, exp(a + b m + w (log pi - m)) a test image of it, with m
    the mean of log pi over its group (head, medium or tail): 0 is no bias, 100 answers as unequal
    as the training images. Not the share of the prior that is left: that one and the same prior
    makes answers the less unequal, the more accurate a network is. "right group" is the share of
    test images put into their own group, "right class in it" that of these which have their own
    class: their product is the accuracy. Classes without an image are left out; empty where the
    groups, or the classes within them, do not differ in number.
    """
    counts, groups = np.asarray(data.counts), np.asarray(data.groups(3))
    labels = np.asarray(data.test_labels)
    tests = np.bincount(labels, minlength=len(counts))
    known = (counts > 0) & (tests > 0)
    log_pi = pd.Series(np.log(counts[known] / counts.sum()))
    mean = log_pi.groupby(groups[known]).transform("mean")
    columns = ["run", "method", "label", "ours", "seed"]
    parts = np.stack([mean, log_pi - mean], 1)
    if (np.ptp(parts, axis=0) < 1e-9).any():
        return pd.DataFrame(columns=[*columns, *BIAS])
    rows = []
    for run in runs.to_dict("records"):
        guess = np.asarray(predictions[run["run"]])
        often = np.bincount(guess, minlength=len(counts))[known] / tests[known]
        fit = PoissonRegressor(alpha=0, tol=1e-8, max_iter=1000).fit(parts, often, tests[known])
        placed = 100 * np.mean(groups[guess] == groups[labels])
        found = *100 * fit.coef_, placed, 1e4 * np.mean(guess == labels) / max(placed, 1e-9)
        rows.append({key: run[key] for key in columns}
                    | dict(zip(BIAS, found, strict=True)))  # fmt: skip
    return pd.DataFrame(rows)


HANDED_ON = ("head answers", "same error: headward", "in its group", "tailward")


def handed_on(
    runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], teacher: np.ndarray, data: Any
) -> pd.DataFrame:
    """How biased each run's answers are, and which errors of its teacher it repeats: a row a run.

    teacher [N]: the class ids that it answers to the test images. In percent: "head answers", the
    share of the run's answers that are head classes; and of the images that the teacher gets wrong
    those to which the run gives the very same answer, where that answer is of a group of more
    frequent classes than the image ("same error: headward"), of the image's own ("in its group")
    and of less frequent ones ("tailward"); NaN where the teacher has no such error.
    """
    groups, labels = np.asarray(data.groups(3)), np.asarray(data.test_labels)
    away = groups[teacher] - groups[labels]  # head is 0
    wrong, rows = teacher != labels, []
    for run in runs.to_dict("records"):
        guess = np.asarray(predictions[run["run"]])
        kinds = [wrong & (np.sign(away) == side) for side in (-1, 0, 1)]
        same = [100 * np.mean((guess == teacher)[kind]) if kind.any() else np.nan for kind in kinds]
        found = 100 * np.mean(groups[guess] == 0), *same
        rows.append({key: run[key] for key in ("run", "method", "label", "ours", "seed")}
                    | dict(zip(HANDED_ON, found, strict=True)))  # fmt: skip
    return pd.DataFrame(rows)


def with_group_counts(runs: pd.DataFrame, counted: pd.DataFrame) -> pd.DataFrame:
    """The methods' runs of a setting and, as methods of their own, LTKD's with other groups."""
    more = counted[~counted["run"].isin(runs["run"])]
    more = more.assign(label=[f"LTKD, n = {n:g}" for n in more["n_groups"]])
    return pd.concat([runs, more], ignore_index=True)


def at_best_share(curves: pd.DataFrame) -> pd.DataFrame:
    """Each method's classes at the tau at which its mean over seeds is highest, all classes alike.

    curves: ``Study.adjusted_per_class``, one setting's. The tau, which joins the label, is read on
    the test images, for every method alike: it describes curves, and chooses nothing.
    """
    if curves.empty:
        return curves
    means = curves.pivot_table(index="method", columns="tau", values="accuracy")
    best = means.idxmax(axis=1)
    own = curves[curves["tau"] == curves["method"].map(best)]
    return own.assign(label=own["label"] + [f", τ = {tau:g}" for tau in own["tau"]])


STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5)


def deployment(curves: pd.DataFrame) -> pd.DataFrame:
    """Every method where test classes are as frequent as pi^s, for each s of STRENGTHS: from 1, as
    in training, over 0, all alike, to -0.5, where the rare classes are the frequent ones.

    curves: ``Study.adjusted_per_class``, one setting's. Accuracies are the classes', weighed by
    pi^s, in points less that of KD with weights 1 and 1 at its best tau there, paired by seed.
    Tidy: method, label, s, trained (mean, as trained), tau (at which the mean over the method's
    seeds is highest there: a description, as in ``at_best_share``, which the intervals do not
    cover), mean, low, high, n (at that tau). Classes without a test image are left out. Empty where
    that KD has no curve.
    """
    if curves.empty or PLAIN not in set(curves["method"]):
        return pd.DataFrame()
    curves = curves.dropna(subset=["accuracy"])
    own = curves[curves["as_trained"]].drop_duplicates("method")
    rows = []
    for s in STRENGTHS:
        weight = curves["count"].astype(float) ** s
        parts = curves.assign(weight=weight, right=weight * curves["accuracy"])
        sums = parts.groupby(["method", "seed", "tau"])[["right", "weight"]].sum()
        level = (sums["right"] / sums["weight"]).unstack("tau")
        best = level.groupby("method").mean().idxmax(axis=1).to_dict()
        for method, label, tau in zip(own["method"], own["label"], own["tau"], strict=True):
            gaps = level.loc[method].sub(level.loc[PLAIN][best[PLAIN]], axis=0)
            about = {"method": method, "label": label, "s": s, "trained": gaps[tau].mean()}
            at_best = t_interval(gaps[best[method]])
            rows.append(about | {"tau": best[method], **vars(at_best)})
    return pd.DataFrame(rows)


def deployment_table(deployed: pd.DataFrame) -> pd.DataFrame:
    """``deployment`` at four s, a row a method: as trained → at its best tau."""
    rows: dict[str, dict[str, str]] = {}
    for row in deployed[deployed["s"] % 0.5 == 0].to_dict("records"):
        at_best = "0" if row["method"] == PLAIN else Interval.of(row).difference()
        whole = f"{at_best}, τ {row['tau']:g}".replace(" ", "\u00a0")  # a narrow cell breaks before
        cell = f"{_shown(row['trained'], 1, '+')} → {whole}"
        rows.setdefault(marked(row["label"]), {})["s = " + f"{row['s']:g}".replace("-", "−")] = cell
    return pd.DataFrame.from_dict(rows, orient="index")


def fitted_shares(fitted: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """What ``fit_tau`` finds without labels, a row a method: tau (mean over seeds), accuracy there,
    and how much more that is than as trained, at tau = 1 and at the best tau of the curves.

    fitted, curves: ``Study.fitted`` and ``Study.adjusted``, one setting's. Paired by run; the best
    tau is that of the highest mean over the fitted runs, read on the test images.
    """
    rows = {}
    for label, own in fitted.groupby("label", sort=False):
        at, curve = own.set_index("run")["all"], curves[curves["run"].isin(own["run"])]
        level = curve.pivot_table(index="run", columns="tau", values="all")
        best = level.mean().idxmax()
        trained = curve[curve["as_trained"]].set_index("run")["all"]
        than = {"as trained": trained, "τ = 1": level[1.0], "best τ": level[best]}
        gaps = {f"minus {k}": t_interval(at - v).difference() for k, v in than.items()}
        gaps["minus best τ"] += f", τ {best:g}"
        about = {"τ": _shown(own["tau"].mean(), 2), "all": t_interval(at).plus_minus()}
        rows[marked(str(label))] = about | gaps
    return pd.DataFrame.from_dict(rows, orient="index")


def fitted_elsewhere(logits: Any, labels: Any, counts: Any) -> pd.DataFrame:
    """``fit_tau`` where test classes are not equally frequent, a row an s: as pi^s they are.

    logits [N, C], labels [N] of test images, counts [C] of the training images. For each s so many
    images of each class are drawn at random as make it so frequent, of the most frequent ones as
    many as the smallest class has; an s that would take less than one of a class is left out. tau ±
    its standard deviation over ten draws, means over them of the accuracy at it, and of how much
    more that is than as trained, at tau = 1 - s and at the best tau of 0, 0.25 ... 3, read with the
    labels. Empty where a class has no image, or all are as large.
    """
    logits, labels, counts = (torch.as_tensor(one) for one in (logits, labels, counts))
    members = [np.flatnonzero(labels == c) for c in range(len(counts))]
    most = min(len(own) for own in members)
    if most < 1 or counts.min() < 1 or counts.min() == counts.max():
        return pd.DataFrame()
    rng, rows = np.random.default_rng(0), {}
    wide = [k / 4 for k in range(13)]  # reversed test classes may ask for more than the curves' 2
    for s in (1.0, 0.5, -0.5):
        share = counts.double() ** s
        if most * share.min() < 0.999 * share.max():
            continue
        wanted = (most * share / share.max()).round().long()
        fits, levels = [], []
        for _ in range(10):
            each = zip(members, wanted.tolist(), strict=True)
            chosen = np.concatenate([rng.choice(own, n, replace=False) for own, n in each])
            z, truth = logits[chosen], labels[chosen]
            fits.append(fit_tau(z, counts, wanted))
            right = [adjust_logits(z, counts, tau).argmax(1) == truth
                     for tau in (fits[-1], 1 - s, *wide)]  # fmt: skip
            levels.append([100 * float(one.double().mean()) for one in right])
        at, consistent, *curve = np.mean(levels, axis=0)
        best = int(np.argmax(curve))
        rows[f"s = {s:g}".replace("-", "−")] = {
            "images": f"{int(wanted.sum()):,}",
            "τ": f"{_shown(float(np.mean(fits)), 2)} ± {_shown(float(np.std(fits, ddof=1)), 2)}",
            "all": _shown(at, 1),
            "minus as trained": _shown(at - curve[0], 1, "+"),
            "minus τ = 1 − s": _shown(at - consistent, 1, "+"),
            "minus best τ": f"{_shown(at - curve[best], 1, '+')}, τ {wide[best]:g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def frequency_sentence(per_class: pd.DataFrame) -> Markdown:
    """Rank correlation of class frequency and accuracy (mean over seeds), and head minus tail."""
    lines = []
    for label, part in per_class.groupby("label", sort=False):
        mean = part.groupby("class_id")[["accuracy", "count", "group"]].mean()
        flat = mean["accuracy"].nunique() < 2 or mean["count"].nunique() < 2
        rho = (
            "none" if flat else _shown(stats.spearmanr(mean["count"], mean["accuracy"])[0], 2, "+")
        )
        by_group = mean.groupby("group")["accuracy"].mean()
        text = (
            f"rank correlation {rho} over {len(mean)} classes, "
            f"head − tail {_shown(by_group.iloc[0] - by_group.iloc[-1], 1, '+')} points"
        )
        lines.append(f"- **{label}**, class frequency and accuracy: {text}")
    return Markdown("\n".join(lines))


def identities(lines: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
    """Each line's two sides, compared sample by sample: means and the largest difference."""
    rows = {}
    for name, sides in lines.items():
        left, right = (np.asarray(side, dtype=float) for side in sides)
        error = np.abs(left - right).max()
        rows[name] = {"left, mean": f"{left.mean():.6g}", "right, mean": f"{right.mean():.6g}"}
        rows[name] |= {"largest difference": f"{error:.1e}"}
        rows[name] |= {"equal to 1e-12": "yes" if error < 1e-12 else "no"}
    return pd.DataFrame.from_dict(rows, orient="index")
