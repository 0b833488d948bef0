"""Tables: a study's settings, paired differences, ours beside the paper's.

Functions take the rows of one setting (data set, gamma, pair, schedule): see ``settings``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import Markdown

from ..files import many
from ..groups import GROUPS
from ..methods import METHODS
from . import paper
from .intervals import METRICS, Interval, bootstrap, number, t_interval
from .paper import Setting

BEST = "all, best test epoch †"
LABELS = {name: method.label for name, method in METHODS.items()} | {
    "baseline": "KD (baseline)",
    "cross_biased": "cross, biased", "cross_rebalanced": "cross, rebalanced",
    "within_only": "within only", "cross_and_within": "cross + within (LTKD)"}  # fmt: skip

PLAIN = "kd_ce1"  # plain distillation at LTKD's outer weights: what the losses are held against
REMOVED = ", prior removed"  # the name of a method whose students are adjusted afterwards
LABELS |= {f"{name}_removed": method.label + REMOVED for name, method in METHODS.items()}
OURS = {method.label for method in METHODS.values() if method.ours}


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


def plane(runs: pd.DataFrame) -> pd.DataFrame:
    """Of a sweep LTKD's settings that differ in alpha and beta alone, the largest such set; empty
    where these do not span a plane."""
    own = runs[runs["method"] == "ltkd"].drop_duplicates("run")  # one setting may have two names
    same = own.groupby(["ce_weight", "kd_weight", "temperature", "rebalance"])
    parts = [part for _, part in same if part[["alpha", "beta"]].nunique().min() > 1]
    return max(parts, key=len, default=own[:0])


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
            line[f"{metric}: ours − paper"] = number(ours.mean - value, 2, "+")
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
