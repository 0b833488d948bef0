"""The study's figures: one style, one colour a method and a group, direct labels.

Each function takes a tidy frame (columns as in ``tables``, ``curves`` and ``bias``) and returns a
matplotlib Figure, 5 inches wide so that its text stays legible where a page is 360 pixels wide.
Nothing is random.
"""

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
from scipy.optimize import isotonic_regression

from ..files import many
from ..groups import GROUPS
from ..params import network_label
from .bias import BIAS
from .intervals import METRICS, TAILS, t_interval
from .tables import LABELS, PLAIN

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "0.6", "axes.grid": True, "axes.axisbelow": True,
    "lines.linewidth": 1.4, "lines.markersize": 6.5, "figure.constrained_layout.h_pad": 0.06,
}  # fmt: skip
# Colour-blind safe. Methods of one family share a hue and differ by marker (and dashes).
BLUE, ORANGE, GREEN, RED, PINK, BROWN, _, _, _, SKY = sns.color_palette("colorblind").as_hex()
LOOKS: dict[str, tuple[str, str]] = {
    "teacher": ("#222222", "*"), "student": ("#7a7a7a", "o"),
    "kd": (BLUE, "o"), "kd_ce1": (BLUE, "s"), "kd_adjusted": (BLUE, "D"),
    "ltkd": (RED, "o"), "balanced_softmax_ltkd": (RED, "s"), "dkd": (ORANGE, "^"),
    "dist": (SKY, "v"), "catkd": (PINK, "<"), "reviewkd": (BROWN, ">"),
    "balanced_softmax": (GREEN, "o"), "balanced_softmax_kd": (GREEN, "s"),
    "balanced_softmax_kd_adjusted": (GREEN, "D"), "balanced_softmax_kd_biased": (GREEN, "^"),
}  # fmt: skip
METRIC_LOOKS = {"all": ("#222222", "d"), "head": ("#1f3d7a", "o"), "medium": ("#6780ab", "s"),
                "tail": ("#b0127b", "^")}  # fmt: skip
FOCUS = ("teacher", "student", "kd", "kd_ce1", "ltkd", "kd_adjusted", "balanced_softmax")
DASHES = {"s": "--", "D": "-.", "^": ":"}
CELLS: dict[str, Any] = {"annot": True, "fmt": ".1f", "cbar": False, "vmin": 0, "linewidths": 1,
                         "square": True, "annot_kws": {"fontsize": 9},
                         "cmap": sns.light_palette(BLUE, as_cmap=True)}  # fmt: skip
OVER_SEEDS = "95 % t interval over seeds"


def look(method: str) -> tuple[str, str]:
    """(colour, marker) of a method, the same in every figure."""
    return LOOKS.get(method, ("#7a7a7a", "P"))


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the study's style, whatever the caller's settings; no rows give a line of text."""

    @wraps(draw)
    def wrapper(rows: Any, *args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
            if isinstance(rows, pd.DataFrame) and rows.empty:
                figure, (axes,) = _panels(height=0.8)
                axes.axis("off")
                axes.text(0.5, 0.5, "Nothing to draw.", ha="center", va="center")
            else:
                figure = draw(rows, *args, **kwargs)
            figure.draw_without_rendering()
        return figure

    return wrapper


def _panels(
    rows: int = 1, columns: int = 1, height: float = 3.2, **share: Any
) -> tuple[Figure, list[Axes]]:
    # Not through pyplot: nothing stays registered, so that a notebook shows a figure once.
    figure = Figure(figsize=(5.0, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for axes in panels:  # ticks that are made later, when the picture is written, look the same
        axes.tick_params(labelsize=9, colors="0.25", grid_color="0.92")
    return figure, panels


def _ink(colour: Any) -> Any:
    """The colour dark enough for text on white."""
    return sns.set_hls_values(colour, l=0.3)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, color="0.35")


def _name(
    axes: Axes, text: str, at: tuple[Any, Any], colour: str, shift: Any = (0, 0), **how: Any
) -> None:
    how = {"fontsize": 9, "fontweight": "bold", "color": _ink(colour), **how}
    axes.annotate(text, at, shift, textcoords="offset points", **how)


def _ends(rows: pd.DataFrame) -> np.ndarray:
    """Lengths of the error bars [2, rows]; zero where there is no interval."""
    ends = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
    return np.nan_to_num(np.array(ends, dtype=float))


def _spread(places: Any, gap: float, low: float, high: float) -> np.ndarray:
    """``places`` at least ``gap`` apart, in order, near where they were, in ``low`` to ``high``."""
    order = np.argsort(places, kind="stable")
    room = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(places, dtype=float)[order] - room).x + room
    moved = np.maximum(np.minimum(moved, high - room[::-1]), low + room)
    return moved[np.argsort(order, kind="stable")]


def _end_labels(
    axes: Axes, points: Sequence[tuple[float, float, str, str]], gap: float = 12
) -> None:
    """Names right of the axes with lines to their points (x, y, text, colour), ``gap`` pt apart."""
    if not points:
        return
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    pixel = axes.transData.transform([(x, y) for x, y, _, _ in points])[:, 1]
    low, high = axes.transAxes.transform([(0, 0), (1, 1)])[:, 1]
    moved = _spread(pixel, gap * axes.figure.dpi / 72, low, high)
    line = {
        "arrowstyle": "-",
        "lw": 0.6,
        "alpha": 0.6,
        "shrinkA": 2,
        "shrinkB": 4,
        "relpos": (0, 0.5),
    }
    for (x, y, text, colour), place in zip(points, moved, strict=True):
        axes.annotate(text, (x, y), (1.03, (place - low) / (high - low)), va="center", fontsize=9,
                      textcoords="axes fraction", color=_ink(colour), annotation_clip=False,
                      arrowprops={**line, "color": colour})  # fmt: skip


def _dots(rows: pd.DataFrame, metrics: Sequence[str]) -> tuple[Figure, Axes]:
    """A row a label from the top, a dot a metric with its interval, the metrics named above."""
    labels = list(dict.fromkeys(rows["label"]))
    shown = [metric for metric in metrics if metric in set(rows["metric"])]
    figure, (axes,) = _panels(height=1.1 + 0.44 * len(labels))
    for k, metric in enumerate(shown):
        part, (colour, marker) = rows[rows["metric"] == metric], METRIC_LOOKS[metric]
        y = part["label"].map(labels.index) + 0.19 * (k - (len(shown) - 1) / 2)
        axes.errorbar(part["mean"], y, xerr=_ends(part), fmt=marker, color=colour, ms=5.5, lw=1.3)
    axes.set_yticks(range(len(labels)), [fill(label, 24) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -1.0)
    axes.grid(axis="y", visible=False)
    for edge in np.arange(0.5, len(labels) - 1):
        axes.axhline(edge, color="0.92", lw=0.8)
    figure.draw_without_rendering()
    first = [(rows.loc[rows["metric"] == metric, "mean"].iloc[0], 0) for metric in shown]
    left, right = axes.transAxes.transform([(0.04, 0), (0.96, 0)])[:, 0]
    pixel = _spread(axes.transData.transform(first)[:, 0], 44 * figure.dpi / 72, left, right)
    places = axes.transData.inverted().transform([(x, 0) for x in pixel])[:, 0]
    for metric, x in zip(shown, places, strict=True):
        _name(axes, metric, (x, -0.72), METRIC_LOOKS[metric][0], ha="center", va="center")
    return figure, axes


@styled
def profile(classes: pd.DataFrame) -> Figure:
    """The long tail: training images a class (rank order), coloured and named by group."""
    figure, (axes,) = _panels(height=3.0)
    ranked = classes.sort_values(["count", "class_id"], ascending=[False, True], ignore_index=True)
    few = len(ranked) <= 20
    for g, group in enumerate(GROUPS):
        part, (colour, _) = ranked[ranked["group"] == g], METRIC_LOOKS[group]
        axes.bar(part.index, part["count"], width=0.8 if few else 1.0, color=colour)
        n = int(part["count"].sum())
        text = f"{group}\n{many(part, 'class')}\n{n:,} image{'s' * (n != 1)}"
        _name(axes, text, (np.mean(part.index), part["count"].max()), colour, (0, 5), ha="center")
    axes.margins(y=0.28)
    axes.grid(axis="x", visible=False)
    if few:
        axes.set_xticks(ranked.index, ranked["class_name"])
    axes.set(xlabel="class, by number of training images", ylabel="training images")
    return figure


@styled
def images(pictures: Any, titles: Sequence[str]) -> Figure:
    """uint8 pictures [N, 3, H, W] in a grid of five columns, each with its title."""
    rows = -(-len(titles) // 5)
    figure, panels = _panels(rows, 5, height=1.35 * rows)
    for axes in panels:
        axes.axis("off")
    for axes, picture, title in zip(panels, np.asarray(pictures), titles, strict=False):
        axes.imshow(picture.transpose(1, 2, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9, fontweight="normal", loc="center")
    return figure


@styled
def teacher_mass(mass: pd.DataFrame) -> Figure:
    """Share of a batch in each group: its labels, the teacher's mass, the same rebalanced."""
    stages, batches = list(dict.fromkeys(mass["stage"])), list(dict.fromkeys(mass["batch"]))
    figure, panels = _panels(1, len(batches), sharey=True)
    for axes, batch in zip(panels, batches, strict=True):
        axes.axhline(100 / mass["group"].nunique(), color="0.4", lw=0.9, ls=":")
        for group in dict.fromkeys(mass["group"]):
            part = mass[(mass["batch"] == batch) & (mass["group"] == group)]
            share, (colour, marker) = part.groupby("stage")["share"], METRIC_LOOKS[group]
            low, high = (share.quantile(q)[stages].to_numpy() for q in TAILS)
            mean = share.mean()[stages].to_numpy()
            bars = [mean - low, high - mean]
            axes.errorbar(stages, mean, yerr=bars, fmt=f"{marker}-", color=colour)
            if batch == batches[-1]:
                _name(axes, group, (0, mean[0]), colour, (-7, 0), ha="right", va="center")
        axes.set_title(f"{batch} batch")
        axes.set_xlim(-1.15 if batch == batches[-1] else -0.35, len(stages) - 0.6)
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set(ylabel="share of the batch, %", ylim=(0, 1.05 * panels[0].get_ylim()[1]))
    _note(figure, "bars: middle 95 % of batches; dotted: equal shares")
    return figure


@styled
def corrections(taken: pd.DataFrame) -> Figure:
    """What each method takes off the teacher's logits, from the largest class to the smallest."""
    figure, (axes,) = _panels(height=3.0)
    names = []
    for k, (by, part) in enumerate(taken.groupby("by", sort=False)):
        x, colour = part["rank"] + 1, look("ltkd" if k else "kd_adjusted")[0]
        line = ":" if k > 1 else "-"
        axes.fill_between(x, part["low"], part["high"], step="mid", color=colour, alpha=0.15, lw=0)
        axes.plot(x, part["mean"], line, color=colour, drawstyle="steps-mid")
        names.append((x.iloc[-1], part["mean"].iloc[-1], fill(str(by), 16), colour))
    axes.set(xlabel="class, by number of training images", ylabel="taken off its logit")
    _end_labels(axes, names, gap=26)
    _note(figure, "less the mean over classes; shaded: middle 95 % of batches")
    return figure


@styled
def accuracy_by_frequency(per_class: pd.DataFrame) -> Figure:
    """One label's test accuracy by class against training images; a line marks a group's mean."""
    figure, (axes,) = _panels(height=2.9)
    same = ["class_id", "class_name", "group", "count"]
    mean = per_class.groupby(same, as_index=False)[["accuracy"]].mean()
    for g, group in enumerate(GROUPS):
        own, (colour, marker) = mean[mean["group"] == g], METRIC_LOOKS[group]
        level, n = own["accuracy"].mean(), own["count"]
        axes.plot(n, own["accuracy"], marker, color=colour, alpha=0.85)
        axes.hlines(level, n.min(), n.max(), color=colour, lw=2.5, alpha=0.5)
        top: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "ha": "center"}
        _name(axes, f"{group} {level:.1f}", (n.median(), 1.03), colour, **top)
    for row in mean.to_dict("records") if len(mean) <= 20 else ():
        at = (row["count"], row["accuracy"])
        _name(axes, row["class_name"], at, "0.3", (0, 6), ha="center", fontweight="normal")
    axes.set(xscale="log", xlim=(mean["count"].min() * 0.85, mean["count"].max() * 1.2))
    axes.margins(y=0.14)
    axes.set_title(per_class["label"].iloc[0], pad=18)
    axes.set(xlabel="training images of the class (log scale)", ylabel="test accuracy, %")
    axes.xaxis.set_major_locator(FixedLocator([k * 10**n for n in range(5) for k in (1, 2, 5)]))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    return figure


@styled
def class_gains(gains: pd.DataFrame) -> Figure:
    """``bias.class_gains``, mean over seeds, from the largest class to the smallest: a panel a
    method, with a line fitted in each group that knows nothing of the next."""
    names = gains.groupby("method", sort=False)["label"].first()
    figure, panels = _panels(len(names), height=0.9 + 2 * len(names), sharex=True, sharey=True)
    mean = gains.groupby(["method", "group", "rank"], as_index=False)["gain"].mean()
    for axes, (method, label) in zip(panels, names.items(), strict=True):
        colour, marker = look(str(method))
        axes.axhline(0, color="0.4", lw=0.9)
        for g, part in mean[mean["method"] == method].groupby("group"):
            x, first = part["rank"] + 1, axes is panels[0]
            axes.plot(x, part["gain"], marker, color=colour, alpha=0.45, ms=4)
            fit = np.polynomial.Polynomial.fit(x, part["gain"], 1)
            axes.plot(x, fit(x), color=colour, lw=2.2)
            if g:
                axes.axvline(x.min() - 0.5, color="0.4", lw=0.9, ls=":")
            name = GROUPS[int(str(g))]
            top: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "ha": "center"}
            _name(axes, name if first else "", (x.mean(), 1.03), METRIC_LOOKS[name][0], **top)
        axes.set_title(label, pad=18 if first else 6)
        axes.set_ylabel("points more")
    panels[-1].set_xlabel("class, by number of training images")
    _note(figure, "mark: a class, mean over seeds; line: fitted in its group; dotted: borders")
    return figure


@styled
def prediction_bias(bias: pd.DataFrame) -> Figure:
    """``bias.prediction_bias``: how biased answers are between the groups and within them, a mark
    a method with both intervals; on the dashed line as much."""
    figure, (axes,) = _panels(height=max(3.6, 0.9 + 0.24 * bias["label"].nunique()))
    names = []
    for label, part in bias.groupby("label", sort=False):
        x, y = (pd.DataFrame([vars(t_interval(part[name]))]) for name in BIAS[:2])
        colour, marker = look(str(part["method"].iloc[0]))
        face = "white" if part["ours"].any() else colour
        axes.errorbar(x["mean"], y["mean"], xerr=_ends(x), yerr=_ends(y), fmt=marker,
                      color=colour, mfc=face, lw=0.9, mew=1.4)  # fmt: skip
        names.append((x["mean"].item(), y["mean"].item(), str(label), colour))
    axes.set(xlabel="bias between groups, %", ylabel="bias within groups, %")
    reach = max(axes.get_xlim()[1], axes.get_ylim()[1])
    least = min(0.0, bias[list(BIAS[:2])].to_numpy().min())
    axes.set(xlim=(least, reach), ylim=(least, reach))
    axes.axline((0, 0), slope=1, color="0.4", lw=0.9, ls="--")
    _note(figure, f"bars: {OVER_SEEDS}; dashed: as much of both")
    _end_labels(axes, names)
    return figure


@styled
def deployment(deployed: pd.DataFrame) -> Figure:
    """``curves.deployment``: each method of FOCUS less the reference, against how the test classes
    are distributed; dotted as trained, solid at its best tau."""
    figure, (axes,) = _panels(height=4.0)
    ends = []
    for method, part in deployed[deployed["method"].isin(FOCUS)].groupby("method", sort=False):
        colour, marker = look(str(method))
        axes.plot(part["s"], part["trained"], ":", color=colour, lw=1.4)
        axes.plot(part["s"], part["mean"], DASHES.get(marker, "-"), color=colour, lw=1.8)
        last = part.iloc[-1]
        ends.append((last["s"], last["mean"], str(last["label"]), colour))
    axes.axhline(0, color="0.4", lw=0.9)
    axes.set(xlim=(1, deployed["s"].min()), ylabel=f"points less {LABELS[PLAIN]}, at its best")
    axes.set_xlabel("test classes as frequent as $π^s$: 1 as in training, 0 all alike")
    _note(figure, "dotted: as trained; other lines: less τ log π, at the best τ")
    _end_labels(axes, ends)
    return figure


@styled
def groups_by_method(summary: pd.DataFrame) -> Figure:
    """Accuracy of each method on all classes and on each group, a row a method."""
    figure, axes = _dots(summary, METRICS)
    axes.set_xlabel("test accuracy, %")
    _note(figure, f"bars: {OVER_SEEDS}")
    return figure


@styled
def differences(paired: pd.DataFrame, metrics: Sequence[str] = METRICS) -> Figure:
    """Paired differences to one reference: the tail's gain beside the head's loss."""
    figure, axes = _dots(paired, metrics)
    axes.axvline(0, color="0.4", lw=0.9)
    axes.set_xlabel(f"difference to {paired['reference'].iloc[0]}, points")
    _note(figure, f"bars: paired {OVER_SEEDS}")
    return figure


@styled
def learning_curves(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Test accuracy by epoch, mean over seeds; ``methods`` in colour with range, others grey."""
    metrics = ["all", "tail"]
    curves = curves.dropna(subset=metrics)
    figure, panels = _panels(len(metrics), height=2.6 * len(metrics), sharex=True)
    first, last = curves["epoch"].min(), curves["epoch"].max()
    for axes, metric in zip(panels, metrics, strict=True):
        ends = []
        for method, part in curves.groupby("method", sort=False):
            course = part.groupby("epoch")[metric].agg(["mean", "min", "max"])
            if method not in methods:
                axes.plot(course.index, course["mean"], color="0.82", lw=1, zorder=1)
                continue
            colour, marker = look(str(method))
            axes.plot(course.index, course["mean"], DASHES.get(marker, "-"), color=colour, lw=1.8)
            band: dict[str, Any] = {"color": colour, "alpha": 0.15, "lw": 0}
            axes.fill_between(course.index, course["min"], course["max"], **band)
            ends.append((course.index[-1], course["mean"].iloc[-1], part["label"].iloc[0], colour))
        axes.set(ylabel=f"{metric}, %", xlim=(min(first, last - 1), last))
        _end_labels(axes, ends)
    panels[-1].set_xlabel("epoch")
    _note(figure, "line: mean over seeds; band: their range; grey: the other methods")
    return figure


@styled
def group_count(paired: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Change over all classes from n = 3 groups: ours with intervals, the paper's pairs in grey."""
    figure, (axes,) = _panels(height=3.3)
    ends = []
    for (teacher, student), part in reported.groupby(["teacher", "student"], sort=False):
        course = part.set_index(part["cell"].astype(int))["top1"].sort_index()
        course = course - course[3]
        axes.plot(course.index, course, ".-", color="0.7", lw=1)
        text = f"{network_label(str(teacher))}-\n{network_label(str(student))}"
        ends.append((course.index[-1], course.iloc[-1], text, "0.45"))
    own, (colour, marker) = paired[paired["metric"] == "all"], look("ltkd")
    reference = pd.DataFrame([{"n_groups": 3, "mean": 0.0, "low": 0.0, "high": 0.0}])
    own = pd.concat([own, reference]).sort_values("n_groups")
    line: dict[str, Any] = {"yerr": _ends(own), "fmt": f"{marker}-", "color": colour}
    axes.errorbar(own["n_groups"], own["mean"], **line, zorder=4)
    axes.plot(3, 0, marker, color=colour, mfc="white", zorder=5)
    ends.append((own["n_groups"].iloc[-1], own["mean"].iloc[-1], "this study", colour))
    axes.axhline(0, color="0.4", lw=0.9)
    ticks = sorted({3, *own["n_groups"].astype(int), *reported["cell"].astype(int)} - {4, 25})
    axes.set(xscale="log", xlabel="number of groups (log scale)")
    axes.set_ylabel("all: points from n = 3")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _note(figure, f"bars: paired {OVER_SEEDS}; grey: the paper, CIFAR-100-LT, γ = 100")
    _end_labels(axes, ends, gap=24)
    return figure


@styled
def against_paper(cells: pd.DataFrame) -> Figure:
    """Ours against the paper's, a point a method and metric; only for a setting that both have."""
    figure, (axes,) = _panels(height=4.6)
    ends = []
    for method, part in cells.groupby("method", sort=False):
        colour, marker = look(str(method))
        axes.errorbar(part["paper"], part["mean"], yerr=_ends(part), fmt=marker, color=colour)
        for row in part.to_dict("records"):
            ends.append((row["paper"], row["mean"], f"{row['label']}, {row['metric']}", colour))
    values = cells[["paper", "mean"]].to_numpy()
    axes.axline((values.min(),) * 2, (values.max(),) * 2, color="0.4", lw=0.9, ls="--")
    axes.set(xlabel="the paper, %", ylabel="this study, %")
    _note(figure, f"bars: {OVER_SEEDS}; dashed: equal")
    _end_labels(axes, ends)
    return figure


@styled
def confusion(shares: pd.DataFrame) -> Figure:
    """Where the test images of each group go, in percent of the group; a panel a network."""
    n = shares["label"].nunique()
    figure, panels = _panels(1, n, height=2.6, sharey=True)
    for axes, (label, part) in zip(panels, shares.groupby("label", sort=False), strict=True):
        grid = part.pivot_table(index="true", columns="predicted", values="share")
        sns.heatmap(grid.loc[list(GROUPS), list(GROUPS)], ax=axes, vmax=130, **CELLS)
        axes.set(
            title=str(label).replace(", ", ",\n") if n > 3 else fill(str(label), 20),
            xlabel="",
            ylabel="",
        )
        axes.tick_params(labelrotation=0, length=0, labelsize=9 if n < 3 else 7.5 if n < 4 else 6)
    panels[0].set_ylabel("true group")
    figure.supxlabel("predicted group", fontsize=10)
    return figure


@styled
def waterfall(steps: pd.DataFrame) -> Figure:
    """From one method to another, a bar a step with the interval of its paired difference."""
    figure, (axes,) = _panels(height=0.9 + 0.42 * len(steps))
    for y, row in enumerate(steps.to_dict("records")):
        total, end = row["kind"] == "total", row["start"] + row["mean"]
        colour = look(row["method"])[0] if total else ("0.35" if row["mean"] >= 0 else "0.7")
        bar: dict[str, Any] = {"color": colour, "height": 0.62, "alpha": 1 if total else 0.75}
        axes.barh(y, row["mean"], left=row["start"], **bar)
        text, right = f"{row['mean']:.1f}", end
        if not total:
            axes.errorbar(end, y, xerr=_ends(steps.iloc[[y]]), color="0.2", lw=1.2)
            text = f"{row['mean']:+.1f}".replace("-", "−")
            right = np.nanmax([end, row["start"], row["start"] + row["high"]])
        _name(axes, text, (right, y), "0.2", (5, 0), va="center", fontweight="normal")
    parts = steps[steps["kind"] == "step"]
    low = (parts["start"] + parts[["mean", "low"]].min(axis=1).clip(upper=0)).min()
    left = max(0.0, low - 1.2 * parts["mean"].abs().max())
    axes.set_xlim(left, None)
    axes.set_yticks(range(len(steps)), steps["label"])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    cut = " (the axis does not start at 0)" if left else ""
    axes.set_xlabel(f"{steps['metric'].iloc[0]}: test accuracy, %{cut}")
    _note(figure, f"bars: paired {OVER_SEEDS}")
    return figure


@styled
def trade_off(summary: pd.DataFrame, title: str = "") -> Figure:
    """Each method's accuracy on the tail against that on all classes, with both intervals; a line
    leads to where it stands with the prior removed, which in ``summary`` is a method *_removed, if
    that is known of all its seeds."""
    removed = summary["method"].str.endswith("_removed")
    after, trained = summary[removed].set_index(["method", "metric"]), summary[~removed]
    figure, (axes,) = _panels(height=max(3.6, 0.9 + 0.24 * trained["label"].nunique()))
    ends, crosses = [], ""
    for method, part in trained.groupby("method", sort=False):
        colour, marker = look(str(method))
        x, y = (part[part["metric"] == metric] for metric in ("all", "tail"))
        to = after.loc[f"{method}_removed"] if f"{method}_removed" in after.index else None
        if to is not None and to.loc["all", "n"] == x["n"].item():
            right, up = to.loc[["all", "tail"], "mean"]
            course = [x["mean"].item(), right], [y["mean"].item(), up]
            axes.plot(*course, ":", color=colour, lw=1.1, zorder=1)
            axes.plot(right, up, "x", color=colour, ms=6, mew=1.8, zorder=5)
            crosses = "\ncross: the same students, prior removed"
            if method in (PLAIN, "ltkd"):  # of which the text speaks
                ends.append((right, up, str(to["label"].iloc[0]), colour))
        face = "white" if part["ours"].any() else colour
        how: dict[str, Any] = {"fmt": marker, "color": colour, "mfc": face, "lw": 0.9, "mew": 1.4}
        zorder = 6 if method == "ltkd" else 4  # it may stand where a hollow mark does
        axes.errorbar(x["mean"], y["mean"], xerr=_ends(x), yerr=_ends(y), **how, zorder=zorder)
        ends.append((x["mean"].iloc[0], y["mean"].iloc[0], str(x["label"].iloc[0]), colour))
    axes.set(xlabel="all classes, %", ylabel="tail classes, %")
    axes.set_title(title, loc="left")
    _note(figure, f"bars: {OVER_SEEDS}; hollow: not in the paper{crosses}")
    _end_labels(axes, ends)
    return figure


def _curve(axes: Axes, part: pd.DataFrame) -> tuple[float, float]:
    """A curve over tau in its method's colour, mean over seeds; gives the place of its tau = 1."""
    colour, marker = look(str(part["method"].iloc[0]))
    course = part.groupby("tau")[["head", "tail"]].mean()
    own = part.loc[part["as_trained"], "tau"].iloc[0]
    axes.plot(course["head"], course["tail"], DASHES.get(marker, "-"), color=colour, lw=1.5)
    axes.plot(*course.loc[own], marker, color=colour)
    x, y = map(float, course.loc[1.0].to_numpy())
    axes.plot(x, y, marker, color=colour, mfc="white", mew=1.4)
    return x, y


def _grey_curves(axes: Axes, adjusted: pd.DataFrame, by: str) -> None:
    for _, part in adjusted.groupby(by, sort=False):
        course = part.groupby("tau")[["head", "tail"]].mean()
        axes.plot(course["head"], course["tail"], color="0.85", lw=1, zorder=1)


CURVES = "mean over seeds; filled: as trained; hollow: prior removed; lines: τ from 0 to 2"


@styled
def frontier(adjusted: pd.DataFrame) -> Figure:
    """Head against tail while the prior is taken out of finished students, a curve a method.

    Filled: as trained; hollow: tau = 1. Methods in FOCUS are in colour, the others grey.
    """
    figure, (axes,) = _panels(height=3.8)
    shown, ends = adjusted["method"].isin(FOCUS), []
    _grey_curves(axes, adjusted[~shown], "method")
    for method, part in adjusted[shown].groupby("method", sort=False):
        x, y = _curve(axes, part)
        ends.append((x, y, str(part["label"].iloc[0]), look(str(method))[0]))
    axes.set(xlabel="head classes, %", ylabel="tail classes, %")
    _note(figure, CURVES)
    _end_labels(axes, ends)
    return figure


@styled
def setting_curves(adjusted: pd.DataFrame) -> Figure:
    """``frontier`` of a sweep: a panel a method, a curve a setting, all others grey behind it."""
    methods = adjusted["method"].unique()
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure, panels = _panels(rows, columns, height=1 + 1.6 * rows, sharex=True, sharey=True)
    for k, (axes, method) in enumerate(zip(panels, methods, strict=False)):
        own = adjusted["method"] == method
        _grey_curves(axes, adjusted[~own], "variant")
        for _, part in adjusted[own].groupby("variant", sort=False):
            _curve(axes, part)
        name = fill(adjusted.loc[own, "label"].iloc[0], 18)
        axes.set_title(name, fontsize=9, color=look(method)[0])
        if k + columns >= len(methods):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("head, %")
    for axes in panels[::columns]:
        axes.set_ylabel("tail, %")
    for axes in panels[len(methods) :]:
        axes.axis("off")
    _note(figure, fill(CURVES, 60))
    return figure


@styled
def heat_map(runs: pd.DataFrame, x: str, y: str) -> Figure:
    """Accuracy over two weights of a method, mean over seeds: on all classes and on the tail.

    Raises ValueError where a seed stands twice in a cell: settings that differ otherwise too.
    """
    if runs.duplicated([x, y, "seed"]).any():
        raise ValueError(f"x = {x!r}, y = {y!r}: a cell has a seed twice; see tables.plane")
    figure, panels = _panels(1, 2, height=2.9, sharey=True)
    for axes, metric in zip(panels, ("all", "tail"), strict=True):
        grid = runs.pivot_table(index=y, columns=x, values=metric).sort_index(ascending=False)
        sns.heatmap(grid, ax=axes, **CELLS | {"vmin": None})
        axes.set(title=f"{metric}, %", xlabel=x, ylabel=y if axes is panels[0] else "")
        axes.tick_params(labelrotation=0, length=0)
    seeds = runs["seed"].nunique()
    _note(figure, f"{'one seed' if seeds == 1 else 'mean over seeds'}; darker is higher")
    return figure


@styled
def rebalancing(mass: pd.DataFrame, pull: pd.DataFrame, title: str) -> Figure:
    """Above: the share of each group, as the teacher has it and rebalanced. Below: the pull on each
    class's logit, from the largest class to the smallest."""
    figure, (above, below) = _panels(2, height=5.6)
    n = mass["group"].nunique()
    above.axhline(100 / n, color="0.4", lw=0.9, ls=":")
    looks = {"the teacher": ("0.35", "o", "-"), "rebalanced": (RED, "D", "--")}
    for stage, (colour, marker, line) in looks.items():
        part = mass[mass["stage"] == stage]
        above.plot(part["group"] + 1, part["share"], marker + line, color=colour, label=stage)
    above.set(ylabel="share of the batch, %", ylim=(0, None), xlim=(0.6, n + 0.4))
    above.set(xlabel="group, head first (dotted: equal shares)", xticks=range(1, n + 1))
    above.set_title(title)
    above.legend(frameon=False, fontsize=9)
    below.axhline(0, color="0.4", lw=0.9)
    for method, label in (("kd", "KD"), ("ltkd", "LTKD")):
        part, (colour, _) = pull[pull["method"] == method], look(method)
        below.plot(part["rank"] + 1, part["pull"], color=colour, label=label)
    below.set(xlabel="class, by number of training images", ylabel="pull on its logit")
    below.legend(frameon=False, fontsize=9)
    _note(figure, "a balanced batch; a student whose logits are all 0")
    return figure
