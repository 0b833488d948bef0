"""What a finished student is worth once the class prior is taken out of its logits.

``Study.adjusted`` gives a run's accuracies along tau, the share of log pi that is taken out: its
curve. Most functions take the rows and curves of one setting: see ``tables.settings``.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from ..adjust import adjust_logits, fit_tau
from .intervals import METRICS, Interval, number, prediction, t_interval
from .paper import Setting
from .tables import LABELS, PLAIN, REMOVED, marked, own_teacher, paired, settings


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
                text = f"{number(gap.low, 1)} to {number(gap.high, 1)}"
            cells[str(method)][metric + how] = text
    return pd.DataFrame.from_dict(cells, orient="index").rename_axis("row").fillna("—")


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
        cell = f"{number(row['trained'], 1, '+')} → {whole}"
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
        about = {"τ": number(own["tau"].mean(), 2), "all": t_interval(at).plus_minus()}
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
            "τ": f"{number(float(np.mean(fits)), 2)} ± {number(float(np.std(fits, ddof=1)), 2)}",
            "all": number(at, 1),
            "minus as trained": number(at - curve[0], 1, "+"),
            "minus τ = 1 − s": number(at - consistent, 1, "+"),
            "minus best τ": f"{number(at - curve[best], 1, '+')}, τ {wide[best]:g}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")
