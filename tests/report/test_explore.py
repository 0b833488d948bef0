"""What explore.ipynb draws, against literal loops over the formulas."""

import math

import numpy as np
import pytest

from ltkd import Study
from ltkd.data import long_tailed_counts
from ltkd.groups import class_groups
from ltkd.report import explore

T, ALPHA, BETA = 2.0, 1.5, 0.5


@pytest.fixture(scope="module")
def batch():
    counts = long_tailed_counts(50, 6, 10.0)
    return explore.made_up_teacher(counts)[:20], counts


def probabilities(logits, groups):
    """p [B, C], p_G [B, n] and p within its group [B, C], loop by loop."""
    p = [[math.exp(z / T) for z in row] for row in logits.tolist()]
    p = [[x / sum(row) for x in row] for row in p]
    p_g = [[sum(x for x, g in zip(row, groups, strict=True) if g == k) for k in range(3)]
           for row in p]  # fmt: skip
    within = [[x / mass[g] for x, g in zip(row, groups, strict=True)]
              for row, mass in zip(p, p_g, strict=True)]  # fmt: skip
    return p, p_g, within


def test_the_scene_is_the_formulas(batch):
    logits, counts = batch
    groups = class_groups(counts, 3).tolist()
    _, p_g, within = probabilities(logits, groups)
    size = len(p_g)
    b = [sum(row[k] for row in p_g) for k in range(3)]
    even = [[row[k] * (sum(b) / 3) / b[k] for k in range(3)] for row in p_g]
    even = [[x / sum(row) for x in row] for row in even]
    mass, pull = explore.scene(logits, counts, 3, T, ALPHA, BETA)
    for stage, rows in (("the teacher", p_g), ("rebalanced", even)):
        share = mass[mass["stage"] == stage].sort_values("group")["share"]
        assert np.allclose(share, [100 * sum(row[k] for row in rows) / size for k in range(3)])
    # The gradient by hand, of a student that is uniform: q = 1 / 6, q_G = 1 / 3, q within = 1 / 2.
    kd = [0.0] * 6
    ltkd = [0.0] * 6
    p = probabilities(logits, groups)[0]
    for i in range(size):
        for c in range(6):
            kd[c] += T / size * (p[i][c] - 1 / 6)
            cross = 1 / 2 * (even[i][groups[c]] - 1 / 3)
            ltkd[c] += T / size * (ALPHA * cross + BETA * (within[i][c] - 1 / 2))
    assert np.allclose(pull.loc[pull["method"] == "kd", "pull"], kd)
    assert np.allclose(pull.loc[pull["method"] == "ltkd", "pull"], ltkd)


def test_a_made_up_teacher_is_biased_to_the_head_and_rebalancing_evens_it_out():
    counts = long_tailed_counts(500, 100, 100.0)
    mass, pull = explore.scene(explore.made_up_teacher(counts), counts, 3, 4.0, 1.0, 1.0)
    share = mass.pivot(index="group", columns="stage", values="share")
    assert share["the teacher"].is_monotonic_decreasing
    assert np.ptp(share["rebalanced"]) < 0.2 * np.ptp(share["the teacher"])
    group = class_groups(counts, 3).numpy()[pull["rank"]]  # classes are in order of size
    sums = pull.groupby(["method", group])["pull"].sum()
    assert sums["kd"].is_monotonic_decreasing
    assert np.ptp(sums["ltkd"]) < 0.2 * np.ptp(sums["kd"])


def test_a_slider_redraws_and_a_trained_teacher_joins(tmp_path, forked):
    study = Study(outputs=tmp_path, methods=["kd"], seeds=[0], epochs=1, pairs=["resnet8-resnet8"])
    assert list(explore.teachers(study)) == [explore.MADE_UP]
    study.teacher()
    panel = explore.panel(study)
    by_name = {widget.description: widget for widget in panel.children}
    view = panel.children[-1]
    assert "each of 3 groups" in view.value
    by_name["groups"].value = 5
    assert "each of 5 groups" in view.value
    before = view.value
    by_name["beta"].value = 2
    assert view.value != before
    assert not by_name["gamma"].disabled
    by_name["teacher"].value = "ResNet8 of quick"
    assert by_name["gamma"].disabled
    assert "ResNet8 of quick" in view.value
