"""Figures: what they show, that colours mean the same everywhere, and that nothing leaks."""

import io
import sys
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from ltkd.methods import METHODS
from ltkd.report import bias, figures, paper, tables
from ltkd.report.intervals import METRICS


def runs(names: list[str], seeds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"method": name, "label": METHODS[name].label, "ours": METHODS[name].ours,
         "seed": seed, "variant": "", "run": f"{name}{seed}",
         **{m: 80 + k + rng.normal() for m in METRICS}}
        for k, name in enumerate(names) for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


FEW, MANY = ["student", "kd", "ltkd"], [name for name in METHODS if name != "teacher"]


def texts(figure: Figure) -> str:
    found = [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]
    return " | ".join(found)


def svg(figure: Figure) -> str:
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ltkd"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


@pytest.mark.parametrize("names", [FEW, MANY])
@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_of_few_and_many_methods(names, seeds):
    frame = runs(names, seeds)
    summary, gaps = tables.summarise(frame), tables.paired(frame, "kd")
    for figure, label in (
        (figures.groups_by_method(summary), "test accuracy, %"),
        (figures.differences(gaps), "difference to KD, points"),
        (figures.trade_off(summary), "all classes, %"),
    ):
        assert isinstance(figure, Figure)
        assert figure.axes[0].get_xlabel() == label
        assert "95 % t interval" in texts(figure)
        for name in set(names) - {"kd"}:
            assert METHODS[name].label in texts(figure).replace("\n", " ")


def test_a_line_leads_to_where_a_student_stands_with_the_prior_removed():
    frame = runs(["kd", "balanced_softmax"])
    after = frame[frame["method"] == "kd"].assign(method="kd_removed", label="KD, prior removed")
    after["tail"] += 9
    both = pd.concat([frame, after], ignore_index=True)
    figure = figures.trade_off(tables.summarise(both))
    own, to = (both[both["method"] == m][["all", "tail"]].mean() for m in ("kd", "kd_removed"))
    course, cross = (line for line in figure.axes[0].lines if line.get_label()[:6] == "_child")
    np.testing.assert_allclose(course.get_xydata(), [own, to])
    np.testing.assert_allclose(cross.get_xydata(), [to])
    assert cross.get_marker() == "x"
    assert texts(figure).count("KD") == 1  # a name each method, not a cross
    assert "cross: the same students, prior removed" in texts(figure)
    assert "cross" not in texts(figures.trade_off(tables.summarise(frame)))


def tidy(values: dict[tuple, tuple], by: str = "method") -> pd.DataFrame:
    """A row of ``by``, metric: mean, low and high, as ``tables.summarise`` gives them."""
    rows = [{by: key, "label": str(key).upper(), "ours": False, "reference": "X", "metric": metric,
             "mean": mean, "low": low, "high": high, "n": 3}
            for (key, metric), (mean, low, high) in values.items()]  # fmt: skip
    return pd.DataFrame(rows)


def drawn(figure: Figure) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Of the first axes what stands with error bars: points [N, 2], and the bars' two ends of each
    direction [N, 2, 2]."""
    found = [one for one in figure.axes[0].containers if isinstance(one, ErrorbarContainer)]
    return [(one[0].get_xydata(), [np.array(bars.get_segments()) for bars in one[2]])
            for one in found]  # fmt: skip


@pytest.mark.parametrize("draw", [figures.groups_by_method, figures.differences])
def test_dots_stand_at_the_means_in_their_rows_with_both_ends(draw):
    ends = {("a", "head"): (60, 55, 62), ("a", "tail"): (20, 13, 30),
            ("b", "head"): (-4, -5, -1), ("b", "tail"): (8, np.nan, np.nan)}  # fmt: skip
    figure = draw(tidy(ends))
    axes, rows = figure.axes[0], {}
    for metric, (points, (bars,)) in zip(("head", "tail"), drawn(figure), strict=True):
        for label, (x, y), ((left, at), (right, _)) in zip("ab", points, bars, strict=True):
            mean, low, high = ends[label, metric]
            assert (x, at) == (mean, y)
            expected = (mean, mean) if np.isnan(low) else (low, high)
            assert (left, right) == pytest.approx(expected)
            rows[label, metric] = y
    assert [text.get_text() for text in axes.get_yticklabels()] == ["A", "B"]
    for y, label in zip(axes.get_yticks(), "ab", strict=True):  # head above tail, about the row
        assert y - 0.5 < rows[label, "head"] < y < rows[label, "tail"] < y + 0.5
    assert axes.yaxis_inverted()


def test_the_trade_off_is_tail_over_all_with_the_intervals_of_each():
    figure = figures.trade_off(tidy({("kd", "all"): (50, 48, 51), ("kd", "tail"): (20, 15, 27),
                                     ("ltkd", "all"): (52, 51, 55), ("ltkd", "tail"): (30, 28, 31),
                                     }))  # fmt: skip
    kd, ltkd = drawn(figure)
    for (points, (across, up)), x, y, all_, tail in (
        (kd, 50, 20, (48, 51), (15, 27)),
        (ltkd, 52, 30, (51, 55), (28, 31)),
    ):
        np.testing.assert_allclose(points, [[x, y]])
        np.testing.assert_allclose(across, [[[all_[0], y], [all_[1], y]]])
        np.testing.assert_allclose(up, [[[x, tail[0]], [x, tail[1]]]])


def test_ours_stands_over_the_papers_number():
    frame = tidy({("kd", "all"): (43, 41, 44), ("kd", "tail"): (20, 12, 21)})
    ((points, (bars,)),) = drawn(figures.against_paper(frame.assign(paper=[42.5, 18.0])))
    np.testing.assert_allclose(points, [[42.5, 43], [18, 20]])
    np.testing.assert_allclose(bars, [[[42.5, 41], [42.5, 44]], [[18, 12], [18, 21]]])


def test_steps_of_the_waterfall_begin_where_the_last_one_ended():
    rows = [("a", "total", 0, 40, np.nan, np.nan), ("b", "step", 40, 6, 5, 9),
            ("c", "step", 46, -2, -5, -1), ("c", "total", 0, 44, np.nan, np.nan)]  # fmt: skip
    names = ["method", "kind", "start", "mean", "low", "high"]
    steps = pd.DataFrame(rows, columns=names).assign(metric="tail", label="x")
    figure = figures.waterfall(steps)
    bars = figure.axes[0].patches
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars] == [
        (0, 40), (40, 46), (46, 44), (0, 44)]  # fmt: skip
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx([0, 1, 2, 3])
    assert figure.axes[0].yaxis_inverted()
    (up, (first,)), (down, (second,)) = drawn(figure)
    np.testing.assert_allclose([*up, *down], [[46, 1], [44, 2]])
    np.testing.assert_allclose([*first, *second], [[[45, 1], [49, 1]], [[41, 2], [45, 2]]])


def test_the_axis_of_a_waterfall_holds_its_intervals():
    rows = [("a", "total", 0, 40, np.nan, np.nan), ("b", "step", 40, 0.1, -6, 6.2),
            ("b", "total", 0, 40.1, np.nan, np.nan)]  # fmt: skip
    names = ["method", "kind", "start", "mean", "low", "high"]
    steps = pd.DataFrame(rows, columns=names).assign(metric="tail", label="x")
    left, right = figures.waterfall(steps).axes[0].get_xlim()
    assert left < 34 < 46.2 < right


def test_numbers_of_groups_are_told_from_three():
    ours = tidy({(10, "all"): (2, -1, 3), (1, "all"): (-4, -6, -3), (1, "tail"): (9, 8, 10)},
                by="n_groups")  # fmt: skip
    paper = pd.DataFrame({"teacher": "vgg13", "student": "vgg8", "cell": ["10", "3", "1"],
                          "top1": [47.0, 48.0, 46.0]})  # fmt: skip
    figure = figures.group_count(ours, paper)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[1, -2], [3, 0], [10, -1]])
    ((points, (bars,)),) = drawn(figure)
    np.testing.assert_allclose(points, [[1, -4], [3, 0], [10, 2]])
    np.testing.assert_allclose(
        bars, [[[1, -6], [1, -3]], [[3, 0], [3, 0]], [[10, -1], [10, 3]]], atol=1e-12
    )


def test_the_frontier_marks_where_a_method_stands():
    parts = [runs(["kd", "dkd", "balanced_softmax"]).assign(tau=tau) for tau in (0.0, 1.0, 2.0)]
    frame = pd.concat(parts, ignore_index=True)
    frame["head"] -= 9 * frame["tau"]
    frame["as_trained"] = frame["tau"] == (frame["method"] == "balanced_softmax")
    axes = figures.frontier(frame).axes[0]
    grey, curve, own, one = axes.lines[:4]
    mean = frame[frame["method"] == "kd"].groupby("tau")[["head", "tail"]].mean()
    np.testing.assert_allclose(curve.get_xydata(), mean)
    np.testing.assert_allclose(own.get_xydata(), mean.loc[[0.0]])
    np.testing.assert_allclose(one.get_xydata(), mean.loc[[1.0]])
    assert one.get_markerfacecolor() == "white"
    assert to_hex(grey.get_color()) == to_hex("0.85")
    own, one = axes.lines[5:]
    np.testing.assert_allclose(own.get_xydata(), one.get_xydata())


def test_a_sweep_has_a_panel_a_method_and_a_curve_a_setting():
    parts = [runs(["kd", "ltkd"]).assign(tau=tau) for tau in (0.0, 1.0, 2.0)]
    frame = pd.concat(parts, ignore_index=True)
    frame["head"] -= 9 * frame["tau"]
    frame["as_trained"] = frame["tau"] == 0
    hot = frame[frame["method"] == "ltkd"].assign(variant="LTKD, T = 2", tail=frame["tail"] + 9)
    frame = pd.concat([frame.assign(variant=frame["method"]), hot])
    kd, ltkd = figures.setting_curves(frame).axes
    assert [axes.get_title("left") for axes in (kd, ltkd)] == ["KD", "LTKD"]
    grey = [
        [to_hex(line.get_color()) for line in axes.lines].count("#d9d9d9") for axes in (kd, ltkd)
    ]
    assert grey == [2, 1]
    assert [len(axes.lines) for axes in (kd, ltkd)] == [2 + 3, 1 + 2 * 3]
    curve, own, one = ltkd.lines[-3:]
    mean = hot.groupby("tau")[["head", "tail"]].mean()
    np.testing.assert_allclose(curve.get_xydata(), mean)
    np.testing.assert_allclose(own.get_xydata(), mean.loc[[0.0]])
    np.testing.assert_allclose(one.get_xydata(), mean.loc[[1.0]])
    five = pd.concat([frame[frame["variant"] == "kd"].assign(method=name, label=name, variant=name)
                      for name in ("kd", "dkd", "dist", "catkd", "reviewkd")])  # fmt: skip
    panels = figures.setting_curves(five).axes
    assert [axes.get_xlabel() for axes in panels[:5]] == ["", "", "head, %", "head, %", "head, %"]
    assert not panels[5].axison


def test_a_method_has_one_colour():
    frame = runs(["kd", "ltkd"])
    curves = pd.concat([frame.assign(epoch=epoch) for epoch in (1, 2)])
    lines = figures.learning_curves(curves, ["kd", "ltkd"]).axes[0].lines
    marks = figures.trade_off(tables.summarise(frame)).axes[0].containers
    expected = [figures.look(name)[0] for name in ("kd", "ltkd")]
    assert [to_hex(line.get_color()) for line in lines] == expected
    assert [to_hex(mark.lines[0].get_color()) for mark in marks] == expected
    assert expected[0] != expected[1]


def test_every_method_can_be_told_apart():
    looks = [figures.look(name) for name in METHODS]
    assert len(set(looks)) == len(looks)


def test_groups_have_the_same_colours_everywhere():
    classes = pd.DataFrame(
        {
            "class_id": range(6),
            "class_name": list("abcdef"),
            "count": [60, 50, 20, 10, 3, 2],
            "group": [0, 0, 1, 1, 2, 2],
        }
    )
    figure = figures.profile(classes)
    bars = [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches]
    assert bars[::2] == [figures.METRIC_LOOKS[group][0] for group in tables.GROUPS]
    per_class = classes.assign(label="Teacher", accuracy=[99, 98, 90, 80, 60, 50.0])
    dots = figures.accuracy_by_frequency(per_class).axes[0].lines
    assert [to_hex(dot.get_color()) for dot in dots] == bars[::2]
    assert "tail\n2 classes\n5 images" in texts(figure)


def test_each_group_has_a_line_of_its_own():
    # 3 points up at each border and a point a class down: the lines are the marks.
    rank = np.arange(48)
    one = pd.DataFrame({"rank": rank, "group": rank // 16, "gain": 3.0 * (rank // 16) - rank})
    two = [one.assign(seed=seed, gain=one["gain"] + seed) for seed in (-1, 1)]
    gains = pd.concat(two).assign(method="ltkd", label="LTKD")
    (axes,) = (figure := figures.class_gains(gains)).axes
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 16]
    for g, (marks, fit) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        own = rank[16 * g : 16 * g + 16]
        np.testing.assert_allclose(marks, np.stack([own + 1, 3.0 * g - own], 1))
        np.testing.assert_allclose(fit, marks, atol=1e-9)
    borders = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    assert borders == [16.5, 32.5]
    assert "head | medium | tail" in texts(figure)


def test_bias_is_a_mark_a_method_and_the_line_is_that_of_equal_parts():
    rows = [{"method": method, "label": label, "ours": False, "seed": seed,
             "between groups": between + seed, "within groups": within - seed}
            for method, label, between, within in (("kd", "KD", 70, 66), ("ltkd", "LTKD", 45, 75),
                                                   ("ltkd", "LTKD, n = 10", 49, 42))
            for seed in (-1, 1)]  # fmt: skip
    (axes,) = (figure := figures.prediction_bias(pd.DataFrame(rows))).axes
    marks = [tuple(box[0].get_xydata()[0]) for box in axes.containers]
    assert marks == [(70, 66), (45, 75), (49, 42)]
    colours = [to_hex(box[0].get_color()) for box in axes.containers]
    assert colours == [figures.look(name)[0] for name in ("kd", "ltkd", "ltkd")]
    assert {"KD", "LTKD", "LTKD, n = 10"} <= set(texts(figure).split(" | "))
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] == 0
    assert axes.get_ylim()[1] > 75 + 12.7  # t(0.975, 1): the interval is whole


def test_deployment_shows_as_trained_dotted_and_the_best_in_full():
    rows = [{"method": method, "label": METHODS[method].label, "s": s, "trained": -9.0 * (1 - s),
             "mean": level} for method, level in (("kd_ce1", 0.0), ("ltkd", 0.5), ("dkd", 3.0))
            for s in (1.0, 0.0, -0.5)]  # fmt: skip
    (axes,) = (figure := figures.deployment(pd.DataFrame(rows))).axes
    lines = {line.get_linestyle(): line.get_ydata() for line in axes.lines[2:4]}
    np.testing.assert_allclose(lines[":"], [0, -9, -13.5])
    np.testing.assert_allclose(lines["-"], [0.5] * 3)
    assert axes.get_xlim() == (1, -0.5)
    assert "DKD" not in texts(figure)  # not among those in colour


def test_the_other_figures():
    reported = paper.reported("group_count")
    frame = pd.concat([runs(["ltkd"]).assign(n_groups=n) for n in (1, 3, 10)])
    figure = figures.group_count(tables.paired(frame, 3, "n_groups"), reported)
    assert figure.axes[0].get_xlabel() == "number of groups (log scale)"
    assert "VGG13-\nVGG8" in texts(figure)
    steps = tables.steps(runs(["kd", "kd_ce1", "ltkd"]), ["kd", "kd_ce1", "ltkd"], "tail")
    assert "→ LTKD" in texts(figures.waterfall(steps))
    cells = tables.summarise(runs(["kd", "ltkd"]), metrics=("all", "tail")).assign(paper=50.0)
    assert figures.against_paper(cells).axes[0].get_ylabel() == "this study, %"
    shares = [
        {"label": "KD", "true": a, "predicted": b, "share": 33.3}
        for a in tables.GROUPS
        for b in tables.GROUPS
    ]
    assert figures.confusion(pd.DataFrame(shares)).axes[0].get_ylabel() == "true group"
    logits, labels = np.eye(3)[np.arange(30) % 3], np.arange(30) % 3
    mass = [
        bias.teacher_mass(logits, labels, [0, 1, 2], kind, size=6, draws=4)
        for kind in ("balanced", "long-tailed")
    ]
    assert [axes.get_title("left") for axes in figures.teacher_mass(pd.concat(mass)).axes] == [
        "balanced batch",
        "long-tailed batch",
    ]
    plane = [
        runs(["ltkd"]).assign(alpha=a, beta=b, tail=10 * a + b)
        for a in (1.0, 2.0)
        for b in (1.0, 4.0)
    ]
    figure = figures.heat_map(pd.concat(plane), "beta", "alpha")
    assert [t.get_text() for t in figure.axes[1].texts] == ["21.0", "24.0", "11.0", "14.0"]
    assert figure.axes[0].get_ylabel() == "alpha"
    with pytest.raises(ValueError, match="a seed twice"):
        figures.heat_map(pd.concat([*plane, plane[0]]), "beta", "alpha")
    assert len(figures.images(np.zeros((7, 3, 4, 4), np.uint8), ["x"] * 7).axes) == 10


def test_what_is_taken_off_is_drawn_once_for_each_method():
    logits = np.random.default_rng(0).normal(size=(50, 6))
    counts = [9, 8, 5, 3, 2, 1]
    taken = bias.corrections(logits, counts, [2, 3, 6], temperature=2.0, size=8, draws=4)
    figure = figures.corrections(taken)
    for by, line in zip(taken["by"].unique(), figure.axes[0].lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), taken.query("by == @by")["mean"])
        assert by in texts(figure).replace("\n", " ")


@pytest.mark.parametrize(("most", "least"), [(500, 5), (5000, 500), (500, 50), (9000, 1500)])
def test_class_sizes_are_marked_on_their_axis(most, least):
    counts = np.geomspace(most, least, 10).round()
    group = np.repeat(["head", "medium", "tail"], [3, 4, 3])
    frame = pd.DataFrame({"class_id": range(10), "class_name": list("abcdefghij"),
                          "count": counts, "group": np.repeat([0, 1, 2], [3, 4, 3]),
                          "accuracy": 50.0, "label": "KD", "method": "kd", "seed": 0})  # fmt: skip
    assert len(group) == len(frame)
    axes = figures.accuracy_by_frequency(frame).axes[0]
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


def test_four_teachers_have_room_for_their_names():
    shares = [{"label": f"{name}, γ = 100", "true": true, "predicted": guess, "share": 33.0}
              for name in ("ResNet32x4", "VGG13", "WRN-40-2", "ResNet50")
              for true in tables.GROUPS for guess in tables.GROUPS]  # fmt: skip
    figure = figures.confusion(pd.DataFrame(shares))
    titles = [axes._left_title for axes in figure.axes]
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    assert len(boxes) == 4
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0
    assert boxes[-1].x1 < figure.bbox.x1


@pytest.mark.filterwarnings("error")
def test_one_evaluated_epoch_is_drawn():
    frame = runs(FEW).assign(epoch=30)
    figures.learning_curves(frame, ["ltkd"])


def test_no_rows_give_a_line_of_text():
    assert "Nothing to draw" in texts(figures.differences(tables.paired(runs(["ltkd"]), "kd")))


def test_style_is_its_own_and_leaves_no_trace():
    summary = tables.summarise(runs(FEW))
    plain = svg(figures.trade_off(summary))
    before = {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}
    with mpl.rc_context({"font.size": 30, "axes.grid": False}):
        assert svg(figures.trade_off(summary)) == plain
    assert {key: mpl.rcParams[key] for key in before} == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("places", [[3.0, 3.0, 3.0], [0.0, 5.0, 5.5, 20.0], [9.0, 1.0], [2.0]])
def test_spread_keeps_order_and_distance(places):
    moved = figures._spread(places, 2.0, -100, 100)
    order = np.argsort(places, kind="stable")
    assert (np.diff(moved[order]) >= 2.0 - 1e-9).all()
    assert moved.mean() == pytest.approx(np.mean(places))
    inside = figures._spread(places, 2.0, 3.0, 11.0)
    assert (np.diff(inside[order]) >= 2.0 - 1e-9).all()
    assert inside.min() >= 3.0
    assert inside.max() <= 11.0
