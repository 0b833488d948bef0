"""The study's figures: one style, one colour a method and a group, direct labels, error bars that say what they are.

Each function takes a tidy frame (columns as in ``tables``) and returns a matplotlib Figure, 5.6 inches wide
so that its text is still legible on a page 360 pixels wide. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from .paper import network_label
from .tables import GROUPS, METRICS

WIDTH = 5.6
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.6", "axes.linewidth": 0.8,
    "xtick.color": "0.25", "ytick.color": "0.25", "axes.grid": True, "grid.color": "0.92",
    "axes.axisbelow": True, "lines.linewidth": 1.6, "lines.markersize": 6.5, "svg.fonttype": "path",
    "svg.hashsalt": "ltkd", "figure.facecolor": "white",
}  # fmt: skip
_WONG = sns.color_palette("colorblind").as_hex()
# Methods of one family share a hue and differ by marker; rivals that the paper does not have are hollow.
LOOKS: dict[str, tuple[str, str]] = {
    "teacher": ("#222222", "*"), "student": ("#7a7a7a", "o"),
    "kd": (_WONG[0], "o"), "kd_ce1": (_WONG[0], "s"), "kd_adjusted": (_WONG[0], "D"),
    "ltkd": (_WONG[3], "o"), "balanced_softmax_ltkd": (_WONG[3], "s"),
    "dkd": (_WONG[1], "^"), "dist": (_WONG[9], "v"), "catkd": (_WONG[4], "<"), "reviewkd": (_WONG[5], ">"),
    "balanced_softmax": (_WONG[2], "o"), "balanced_softmax_kd": (_WONG[2], "s"),
    "balanced_softmax_kd_adjusted": (_WONG[2], "D"), "balanced_softmax_kd_biased": (_WONG[2], "^"),
}  # fmt: skip
DASHES = {"s": "--", "D": "-.", "^": ":"}
METRIC_LOOKS = {
    "all": ("#222222", "d"),
    "head": ("#33508a", "o"),
    "medium": ("#8fa3bf", "s"),
    "tail": ("#b0127b", "^"),
}
BAR = "95 % t interval over seeds"


def look(method: str) -> tuple[str, str]:
    """(colour, marker) of a method, the same in every figure."""
    return LOOKS.get(method, ("#7a7a7a", "P"))


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the study's style, whatever the caller's settings are."""

    @wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            if isinstance(args[0], pd.DataFrame) and args[0].empty:
                figure, (axes,) = _panels(height=0.8)
                axes.axis("off")
                axes.text(0.5, 0.5, "This study has no such runs.", ha="center", va="center")
                return figure
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made lazily: make them in this style
        return figure

    return wrapper


def _panels(
    rows: int = 1, columns: int = 1, height: float = 3.4, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    # Not through pyplot: nothing stays registered, so that a notebook shows a figure once.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns, **kwargs)).flat)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, color="0.35")


def _spread(places: Sequence[float], gap: float) -> np.ndarray:
    """``places`` moved apart to at least ``gap``, their order kept, as near to where they were as can be."""
    order = np.argsort(places, kind="stable")
    blocks: list[
        list[float]
    ] = []  # [sum of (place - offset), size]: pool neighbours that would overlap
    for place in np.asarray(places, dtype=float)[order]:
        blocks.append([place, 1])
        while len(blocks) > 1:
            (a, m), (b, n) = blocks[-2:]
            if b / n - a / m >= gap * (m + n) / 2:
                break
            blocks[-2:] = [[a + b, m + n]]
    moved = np.concatenate([s / n + gap * (np.arange(n) - (n - 1) / 2) for s, n in blocks])
    return moved[np.argsort(order, kind="stable")]


def _end_labels(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], gap: float = 12
) -> None:
    """Names at the right edge with a thin leader, pushed apart by ``gap`` typographic points; (x, y, text, colour)."""
    if not points:
        return
    axes.figure.draw_without_rendering()
    scale = axes.figure.dpi / 72  # type: ignore[union-attr]
    pixel = axes.transData.transform([(x, y) for x, y, _, _ in points])[:, 1]
    low, high = axes.transAxes.transform([(0, 0), (1, 1)])[:, 1]
    moved = _spread(pixel, gap * scale)
    moved += min(0, high - moved.max()) + max(0, low - (moved.min() + min(0, high - moved.max())))
    for (x, y, text, colour), place in zip(points, moved, strict=True):
        axes.annotate(text, (x, y), (1.03, (place - low) / (high - low)), textcoords="axes fraction", fontsize=9,
                      color=colour, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 4})  # fmt: skip


def _dots(
    axes: Axes, tidy: pd.DataFrame, metrics: Sequence[str], reference: float | None = None
) -> None:
    """A row a label, a dot a metric with its interval; rows from top to bottom in the frame's order."""
    labels = list(dict.fromkeys(tidy["label"]))
    shown = [m for m in metrics if m in set(tidy["metric"])]
    for k, metric in enumerate(shown):
        part = tidy[tidy["metric"] == metric]
        y = np.array([labels.index(label) for label in part["label"]]) + 0.19 * (
            k - (len(shown) - 1) / 2
        )
        colour, marker = METRIC_LOOKS[metric]
        error = np.nan_to_num([part["mean"] - part["low"], part["high"] - part["mean"]])
        axes.errorbar(part["mean"], y, xerr=error, fmt=marker, color=colour, ms=5.5, lw=1.3)
    if reference is not None:
        axes.axvline(reference, color="0.4", lw=0.9)
    axes.set_yticks(range(len(labels)), [fill(label, 24) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -1.0)
    axes.figure.draw_without_rendering()  # the header's names stand above the first row's dots, apart
    first = [tidy.loc[tidy["metric"] == metric, "mean"].iloc[0] for metric in shown]
    pixel = _spread(
        axes.transData.transform([(x, 0) for x in first])[:, 0], 44 * axes.figure.dpi / 72
    )
    for metric, x in zip(
        shown, axes.transData.inverted().transform([(x, 0) for x in pixel])[:, 0], strict=True
    ):
        axes.text(
            x,
            -0.72,
            metric,
            color=METRIC_LOOKS[metric][0],
            ha="center",
            fontsize=9,
            fontweight="bold",
        )
    axes.grid(axis="y", visible=False)
    for edge in np.arange(0.5, len(labels) - 1):
        axes.axhline(edge, color="0.92", lw=0.8)


@styled
def profile(classes: pd.DataFrame) -> Figure:
    """The long tail: training images a class (rank order), coloured and named by group."""
    figure, (axes,) = _panels(height=3.0)
    ranked = classes.sort_values(["count", "class_id"], ascending=[False, True]).reset_index(
        drop=True
    )
    for g, part in ranked.groupby("group"):
        colour, _ = METRIC_LOOKS[GROUPS[int(str(g))]]
        axes.bar(part.index, part["count"], width=0.8 if len(ranked) <= 20 else 1.0, color=colour)
        text = f"{GROUPS[int(str(g))]}\n{len(part)} classes\n{part['count'].sum():,} images"
        axes.annotate(text, (part.index.to_numpy().mean(), part["count"].max()), (0, 5), textcoords="offset points",
                      ha="center", color=colour, fontsize=9, fontweight="bold")  # fmt: skip
    axes.margins(y=0.28)
    axes.grid(axis="x", visible=False)
    if len(ranked) <= 20:
        axes.set_xticks(ranked.index, ranked["class_name"])
    axes.set(xlabel="class, by number of training images", ylabel="training images")
    return figure


@styled
def images(pictures: Any, titles: Sequence[str], columns: int = 5) -> Figure:
    """uint8 pictures [N, 3, H, W] in a grid, each with its title."""
    rows = -(-len(titles) // columns)
    figure, axes = _panels(rows, columns, height=1.35 * rows)
    for ax in axes:
        ax.axis("off")
    for ax, picture, title in zip(axes, np.asarray(pictures), titles, strict=False):
        ax.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        ax.set_title(title, fontsize=9, fontweight="normal", loc="center")
    return figure


@styled
def teacher_mass(mass: pd.DataFrame) -> Figure:
    """Share of a batch in each group: its labels, the teacher's probability, the same rebalanced."""
    stages, batches = list(dict.fromkeys(mass["stage"])), list(dict.fromkeys(mass["batch"]))
    figure, panels = _panels(1, len(batches), height=3.2, sharey=True)
    for axes, batch in zip(panels, batches, strict=True):
        for group in dict.fromkeys(mass["group"]):
            part = mass[(mass["batch"] == batch) & (mass["group"] == group)].groupby("stage")[
                "share"
            ]
            mean, low, high = (
                x[stages].to_numpy()
                for x in (part.mean(), part.quantile(0.025), part.quantile(0.975))
            )
            colour, marker = METRIC_LOOKS[group]
            axes.errorbar(
                range(len(stages)),
                mean,
                yerr=[mean - low, high - mean],
                fmt=f"{marker}-",
                color=colour,
                lw=1.3,
            )
            if batch == batches[-1]:
                axes.annotate(group, (0, mean[0]), (8, 5), textcoords="offset points", color=colour, fontsize=9,
                              fontweight="bold")  # fmt: skip
        axes.axhline(100 / mass["group"].nunique(), color="0.4", lw=0.9, ls=":")
        axes.set_xticks(range(len(stages)), stages)
        axes.set_xlim(-0.35, len(stages) - 0.6)
        axes.set_title(f"{batch} batch")
    panels[0].set(ylabel="share of the batch, %", ylim=(0, 1.05 * panels[0].get_ylim()[1]))
    _note(figure, "bars: middle 95 % of batches; dotted: equal shares")
    return figure


@styled
def accuracy_by_frequency(per_class: pd.DataFrame) -> Figure:
    """Test accuracy of each class against its training images; a bar a group marks the group's mean."""
    labels = list(dict.fromkeys(per_class["label"]))
    figure, panels = _panels(len(labels), 1, height=2.9 * len(labels), sharex=True)
    for axes, label in zip(panels, labels, strict=True):
        part = per_class[per_class["label"] == label]
        mean = part.groupby("class_id").agg(
            {"accuracy": "mean", "count": "first", "group": "first", "class_name": "first"}
        )
        for g, own in mean.groupby("group"):
            name = GROUPS[int(str(g))]
            colour, marker = METRIC_LOOKS[name]
            axes.plot(own["count"], own["accuracy"], marker, color=colour, alpha=0.85)
            axes.hlines(
                own["accuracy"].mean(),
                own["count"].min(),
                own["count"].max(),
                color=colour,
                lw=2.5,
                alpha=0.5,
            )
            axes.text(own["count"].median(), 1.03, f"{name} {own['accuracy'].mean():.1f}", color=colour, ha="center",
                      fontsize=9, fontweight="bold", transform=axes.get_xaxis_transform())  # fmt: skip
            for _, row in own.iterrows() if len(mean) <= 20 else ():
                axes.annotate(str(row["class_name"]), (row["count"], row["accuracy"]), (6, -3), fontsize=9, color="0.3",
                              textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", ylabel="test accuracy, %")
        axes.set_title(label, pad=18)
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(mean["count"].min() * 0.85, mean["count"].max() * 1.2)
    panels[-1].set_xlabel("training images of the class (log scale)")
    return figure


@styled
def groups_by_method(summary: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Accuracy of each method on the whole test set and on each group, a row a method."""
    figure, (axes,) = _panels(height=1.1 + 0.44 * summary["label"].nunique())
    _dots(axes, summary, metrics)
    axes.set_xlabel("test accuracy, %")
    _note(figure, f"bars: {BAR}")
    return figure


@styled
def differences(paired: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Paired differences to one reference: the tail's gain beside the head's loss, a row a method."""
    figure, (axes,) = _panels(height=1.2 + 0.44 * paired["label"].nunique())
    _dots(axes, paired, metrics, reference=0)
    axes.set_xlabel(f"difference to {paired['reference'].iloc[0]}, points")
    _note(figure, f"bars: paired {BAR}")
    return figure


@styled
def learning_curves(
    curves: pd.DataFrame, methods: Sequence[str], metrics: Sequence[str] = ("all", "tail")
) -> Figure:
    """Test accuracy by epoch, mean over seeds; ``methods`` in colour with their range, the rest in grey."""
    figure, panels = _panels(len(metrics), 1, height=2.6 * len(metrics), sharex=True)
    for axes, metric in zip(panels, metrics, strict=True):
        ends = []
        for method, part in curves.groupby("method", sort=False):
            course = part.groupby("epoch")[metric]
            mean, focus = course.mean(), method in methods
            colour = look(str(method))[0] if focus else "0.82"
            line = DASHES.get(look(str(method))[1], "-") if focus else "-"
            axes.plot(
                mean.index,
                mean,
                line,
                color=colour,
                lw=1.8 if focus else 1,
                zorder=3 if focus else 1,
            )
            if focus:
                axes.fill_between(
                    mean.index, course.min(), course.max(), color=colour, alpha=0.15, lw=0
                )
                ends.append((mean.index[-1], mean.iloc[-1], part["label"].iloc[0], colour))
        axes.set(ylabel=f"{metric}, %", xlim=(curves["epoch"].min(), curves["epoch"].max()))
        _end_labels(axes, ends)
    panels[-1].set_xlabel("epoch")
    _note(figure, "line: mean over seeds; band: their range; grey: the other methods")
    return figure


@styled
def heat_map(runs: pd.DataFrame, metrics: Sequence[str] = ("tail", "all")) -> Figure:
    """Accuracy over alpha (across) and beta (up), mean over seeds, a panel a metric."""
    figure, panels = _panels(1, len(metrics), height=3.0)
    for axes, metric in zip(panels, metrics, strict=True):
        grid = runs.pivot_table(index="beta", columns="alpha", values=metric).sort_index(
            ascending=False
        )
        sns.heatmap(
            grid,
            ax=axes,
            annot=True,
            fmt=".1f",
            cmap="cividis",
            cbar=False,
            linewidths=1,
            annot_kws={"fontsize": 9},
        )
        axes.set(title=f"{metric}, %", xlabel="α (cross-group)", ylabel="β (within-group)")
        axes.tick_params(labelrotation=0, length=0)
    _note(figure, "mean over seeds")
    return figure


@styled
def group_count(paired: pd.DataFrame, reported: pd.DataFrame, metric: str = "all") -> Figure:
    """Change against n = 3 groups: ours with intervals, the paper's pairs (another setting unless said) in grey."""
    figure, (axes,) = _panels(height=3.3)
    ends = []
    for (teacher, student), part in reported.groupby(["teacher", "student"], sort=False):
        course = part.assign(n=part["cell"].astype(int)).sort_values("n").set_index("n")["top1"]
        axes.plot(course.index, course - course[3], ".-", color="0.7", lw=1)
        pair = f"{network_label(teacher)}-\n{network_label(student)}"
        ends.append((course.index[-1], course.iloc[-1] - course[3], pair, "0.45"))
    own = paired[paired["metric"] == metric].sort_values("n_groups")
    error = np.nan_to_num([own["mean"] - own["low"], own["high"] - own["mean"]])
    colour, marker = look("ltkd")
    axes.errorbar(
        own["n_groups"], own["mean"], yerr=error, fmt=f"{marker}-", color=colour, zorder=4
    )
    axes.plot(3, 0, marker, color=colour, mfc="white", zorder=5)
    if len(own):
        ends.append((own["n_groups"].iloc[-1], own["mean"].iloc[-1], "this study", colour))
    axes.axhline(0, color="0.4", lw=0.9)
    ticks = sorted({3, *own["n_groups"].astype(int), *reported["cell"].astype(int)} - {4, 25})
    axes.set(
        xscale="log", xlabel="number of groups n (log scale)", ylabel=f"{metric}: points from n = 3"
    )
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _note(figure, f"bars: paired {BAR}; grey: the paper's pairs, CIFAR-100-LT, γ = 100")
    _end_labels(axes, ends, gap=24)
    return figure


@styled
def against_paper(cells: pd.DataFrame) -> Figure:
    """Ours against the paper's, a point a method and metric; only for a setting that is the same in both."""
    figure, (axes,) = _panels(height=4.6)
    ends = []
    for row in cells.itertuples():
        colour, marker = look(str(row.method))
        error = np.nan_to_num([[row.mean - row.low], [row.high - row.mean]])
        axes.errorbar(row.paper, row.mean, yerr=error, fmt=marker, color=colour)
        ends.append((row.paper, row.mean, f"{row.label}, {row.metric}", colour))
    low, high = (f(f(cells["paper"]), f(cells["mean"])) for f in (min, max))
    axes.axline((low, low), (high, high), color="0.4", lw=0.9, ls="--")
    axes.set(xlabel="the paper, %", ylabel="this study, %")
    _note(figure, f"bars: {BAR}; dashed: equal")
    _end_labels(axes, ends)
    return figure


@styled
def confusion(shares: pd.DataFrame) -> Figure:
    """Where the test images of each group go, in percent of the group; a panel a network."""
    labels = list(dict.fromkeys(shares["label"]))
    figure, panels = _panels(1, len(labels), height=2.5, sharey=True)
    for axes, label in zip(panels, labels, strict=True):
        part = shares[shares["label"] == label]
        grid = part.pivot_table(index="true", columns="predicted", values="share").reindex(
            index=GROUPS, columns=GROUPS
        )
        sns.heatmap(grid, ax=axes, annot=True, fmt=".1f", cmap="Greys", vmin=0, vmax=130, cbar=False, square=True,
                    linewidths=1, annot_kws={"fontsize": 9})  # fmt: skip
        axes.set(title=fill(label, 20), xlabel="", ylabel="")
        axes.tick_params(labelrotation=0, length=0)
    panels[0].set_ylabel("true group")
    figure.supxlabel("predicted group", fontsize=10)
    return figure


@styled
def waterfall(steps: pd.DataFrame) -> Figure:
    """From one method to another in steps: label, start, mean (the step), low, high; ends as totals."""
    figure, (axes,) = _panels(height=0.9 + 0.42 * len(steps))
    for y, row in enumerate(steps.itertuples()):
        total = row.kind == "total"
        colour = (
            look(str(row.method))[0]
            if total
            else (METRIC_LOOKS["tail"][0] if row.mean >= 0 else "#7a7a7a")
        )
        axes.barh(
            y, row.mean, left=row.start, color=colour, height=0.62, alpha=1 if total else 0.75
        )
        end = row.start + row.mean
        if not total:
            error = np.nan_to_num([[row.mean - row.low], [row.high - row.mean]])
            axes.errorbar(end, y, xerr=error, color="0.2", lw=1.2)
        text = f"{row.mean:.1f}" if total else f"{row.mean:+.1f}".replace("-", "−")
        axes.annotate(text, (np.nanmax([end, row.start, row.start + (row.high if not total else 0)]), y), (5, 0),
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.set_yticks(range(len(steps)), steps["label"])
    axes.invert_yaxis()
    totals = steps.loc[steps["kind"] == "total", "mean"]
    span = steps["mean"].where(steps["kind"] == "step").abs().max()
    axes.set_xlim(
        min(totals.min(), steps["start"].where(steps["kind"] == "step").min()) - 1.2 * span, None
    )
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{steps['metric'].iloc[0]}: test accuracy, % (the axis does not start at 0)")
    _note(figure, f"bars: paired {BAR}")
    return figure


@styled
def trade_off(summary: pd.DataFrame) -> Figure:
    """Each method's accuracy on the tail against that on all classes, with both intervals."""
    figure, (axes,) = _panels(height=max(3.6, 0.9 + 0.24 * summary["label"].nunique()))
    ends = []
    for method, part in summary.groupby("method", sort=False):
        colour, marker = look(str(method))
        x, y = (part[part["metric"] == m].iloc[0] for m in ("all", "tail"))
        error = {
            f"{k}err": np.nan_to_num([[v["mean"] - v["low"]], [v["high"] - v["mean"]]])
            for k, v in (("x", x), ("y", y))
        }
        face = "white" if bool(x["ours"]) else colour
        axes.errorbar(
            x["mean"], y["mean"], fmt=marker, color=colour, mfc=face, lw=0.9, mew=1.4, **error
        )
        ends.append((x["mean"], y["mean"], str(x["label"]), colour))
    axes.set(xlabel="all classes, %", ylabel="tail classes, %")
    _note(figure, f"bars: {BAR}; hollow: not in the paper")
    _end_labels(axes, ends)
    return figure
