"""Where the bias is: teachers and students whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rows import runs

from ltkd.report import bias, tables


def test_frequency_and_accuracy_by_hand():
    # Ranks of the frequencies 4 3 2 1. KD's of the accuracies, means over seeds: 4 2 3 1, so that
    # rho = 1 - 6 (1 + 1) / (4 x 15); LTKD's are turned about: 1 3 2 4, 1 - 6 (9 + 9) / 60.
    rows = [{"label": label, "class_id": c, "count": count, "group": group,
             "accuracy": accuracy + c * seed}
            for label, course in (("KD", (90, 70, 80, 50)), ("LTKD", (50, 80, 70, 90)))
            for c, (count, group, accuracy) in enumerate(zip((40, 20, 10, 5), (0, 1, 2, 2), course,
                                                             strict=True))
            for seed in (-9, 9)]  # fmt: skip
    first, second = bias.frequency_sentence(pd.DataFrame(rows)).data.split("\n")
    assert first.startswith("- **KD**")
    assert "+0.80 over 4 classes, head − tail +25.0 points" in first  # 90 - (80 + 50) / 2
    assert "−0.80 over 4 classes, head − tail −30.0 points" in second  # 50 - (70 + 90) / 2


def per_class(gain) -> pd.DataFrame:
    """48 classes of 16 a group, in an order that is not that of their sizes; KD with weights 1 and
    1 has 50 + 5 times the seed everywhere, LTKD ``gain(rank, seed)`` more."""
    order = np.random.default_rng(0).permutation(48)  # rank of each class
    return pd.DataFrame([
        {"method": method, "label": label, "seed": seed, "class_id": c, "count": 480 - 10 * rank,
         "group": rank // 16, "accuracy": 50 + 5 * seed + more * gain(rank, seed)}
        for method, label, more in (("kd_ce1", "KD, weights 1 and 1", 0), ("ltkd", "LTKD", 1))
        for seed in (0, 1) for c, rank in enumerate(order)
    ])  # fmt: skip


def test_a_jump_at_a_border_is_told_from_a_slope():
    # 2 points up at the first border in one seed, 4 in the other, 8 down at the second in both, and
    # half a point a class down everywhere: a jump is of means 8 classes apart, so 4 points less.
    def steps(rank: int, seed: int) -> float:
        return (2 + 2 * seed) * (rank >= 16) - 8 * (rank >= 32) - rank / 2

    gains = bias.class_gains(per_class(steps))
    assert gains["rank"].tolist() == [*range(48)] * 2
    assert gains["gain"].tolist()[14:18] == [-7, -7.5, -6, -6.5]
    (row,) = bias.border_jumps(gains).to_dict("records")
    half = 12.7062 / 2**0.5 * 2**0.5  # t(0.975, 1), of two seeds 2 apart
    first = f"−1.0 [−{1 + half:.1f}, {half - 1:.1f}]"
    assert row == {"from head to medium": first, "from medium to tail": "−12.0 (2, equal)",
                   "elsewhere": "−4.0 ± 0.0", "seeds": "2"}  # fmt: skip


def test_borders_of_small_groups_are_not_looked_at():
    gains = bias.class_gains(per_class(lambda rank, seed: 0.0))
    assert bias.border_jumps(gains, width=9).empty
    without = per_class(lambda rank, seed: 0.0).query("method == 'ltkd'")
    assert bias.border_jumps(bias.class_gains(without)).empty


class Images:
    """Six classes, two a group, with their test images."""

    counts = np.array([320, 160, 80, 40, 20, 10])

    def __init__(self, tests: list[int]) -> None:
        self.test_labels = np.repeat(np.arange(6), tests)

    def groups(self, n: int) -> np.ndarray:
        return np.arange(6) * n // 6


def test_bias_between_groups_and_within_them_are_told_apart():
    # Geometric means of the groups' shares are 4 to 1 apart and shares within them 2 to 1. Answers
    # are 2 to 1 both ways: half of the one, all of the other. The second set has 2 to 16 test
    # images a class and as many answers to each, which is the same a test image.
    even, uneven = Images([7] * 6), Images([2, 4, 4, 8, 8, 16])
    guess = np.repeat(np.arange(6), [16, 8, 8, 4, 4, 2])
    frame = runs({"kd": [0.0, 0.0]}).assign(label="KD")
    answers = {"kd0": guess, "kd1": even.test_labels}
    first, right = bias.prediction_bias(frame, answers, even).to_dict("records")
    (second,) = bias.prediction_bias(
        frame[:1], {"kd0": np.repeat(np.arange(6), 7)}, uneven
    ).to_dict("records")
    for row in (first, second):
        assert [row[name] for name in bias.BIAS[:2]] == pytest.approx([50, 100], abs=1e-3)
    assert [right[name] for name in bias.BIAS] == pytest.approx([0, 0, 100, 100], abs=1e-3)
    pairs = list(zip(guess.tolist(), even.test_labels.tolist(), strict=True))
    placed = [(a, b) for a, b in pairs if a // 2 == b // 2]
    own = sum(a == b for a, b in placed)
    assert first["right group"] == pytest.approx(100 * len(placed) / 42)
    assert first["right class in it"] == pytest.approx(100 * own / len(placed))


def test_without_a_long_tail_there_is_no_bias_to_find():
    data = Images([7] * 6)
    for counts in (np.full(6, 37), np.array([320, 320, 80, 80, 20, 20])):  # no slope within groups
        data.counts = counts
        found = bias.prediction_bias(runs({"kd": [0.0]}).assign(label="KD"), {}, data)
        assert found.empty


def test_teacher_mass_of_a_known_teacher():
    # Every image gets the probabilities 0.6, 0.3, 0.1, one class a group.
    logits = np.log(np.tile([0.6, 0.3, 0.1], (30, 1)))
    labels = np.arange(30) % 3
    mass = bias.teacher_mass(
        logits, labels, [0, 1, 2], "balanced", size=9, draws=3, temperature=1.0
    )
    share = mass.groupby(["stage", "group"])["share"].mean()
    np.testing.assert_allclose(share["teacher"][list(tables.GROUPS)], [60, 30, 10])
    np.testing.assert_allclose(share["rebalanced"], [100 / 3] * 3)
    np.testing.assert_allclose(share["labels"], [100 / 3] * 3)
    other = bias.teacher_mass(
        logits, labels, [0, 1, 2], "long-tailed", size=9, draws=3, temperature=1.0
    )
    head, removed = bias.mass_effects(pd.concat([mass, other])).values()
    assert head.mean == pytest.approx(60 - 100 / 3)
    assert removed.mean == pytest.approx(50)


def test_a_teachers_excess_of_the_head_over_test_images():
    """Two classes, 400 images each; the teacher gives the head 0.9 or 0.7 of its probability for
    the head's images, half of them each, and 0.3 for the others: 0.55 - 0.5, and only the first
    class has any spread, 0.1, of which the interval is 1.96 standard errors of a mean of 800."""
    p = np.r_[np.tile([0.9, 0.7], 200), np.full(400, 0.3)]
    labels = np.repeat([0, 1], 400)
    logits = np.log(np.stack([p, 1 - p], 1))
    found = bias.head_excess(logits, labels, [0, 1], 1.0)
    assert found.mean == pytest.approx(5)
    assert found.n == 800
    half = 1.96 * 100 * 0.1 / np.sqrt(400) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_which_errors_of_the_teacher_are_handed_on():
    """Six classes, two a group; the teacher errs on five of eight images, worked out by hand."""
    labels = np.array([0, 1, 2, 3, 4, 5, 5, 4])
    data = SimpleNamespace(groups=lambda n: [0, 0, 1, 1, 2, 2], test_labels=labels)
    teacher = np.array([0, 0, 0, 3, 2, 5, 4, 0])  # headward: 2 -> 0, 4 -> 2 and 4 -> 0
    runs = pd.DataFrame([
        {"run": name, "method": name, "label": name, "ours": False, "seed": 0} for name in "ab"
    ])  # fmt: skip
    answers = {"a": np.array([0, 0, 0, 4, 2, 5, 5, 4]), "b": np.array([0, 1, 1, 3, 5, 5, 4, 0])}
    found = bias.handed_on(runs, answers, teacher, data).set_index("run")
    head, up, inside, down = (found[name] for name in bias.HANDED_ON)
    np.testing.assert_allclose(head, [100 * 3 / 8, 100 * 4 / 8])
    np.testing.assert_allclose(up, [100 * 2 / 3, 100 * 1 / 3])
    np.testing.assert_allclose(inside, [50, 50])  # 1 -> 0 by a, 5 -> 4 by b
    assert down.isna().all()


def test_corrections_of_a_teacher_that_leans_on_the_prior():
    """z = 0.8 log pi of every image: T log b is 0.8 log pi + a constant, at any T, where every
    class is its own group; with fewer groups it is a staircase, worked out here class by class."""
    counts = np.array([50, 1, 20, 0, 5])  # not in order, and one class has no image
    with np.errstate(divide="ignore"):
        prior = np.log(counts / counts.sum())
    teacher = np.tile(0.8 * prior, (30, 1))
    taken = bias.corrections(teacher, counts, [2, 5], temperature=3.0, size=8, draws=5)
    assert list(taken["count"][:4]) == [50, 20, 5, 1]
    assert len(taken) == 3 * 4
    own = {by: part["mean"].to_numpy() for by, part in taken.groupby("by")}
    falling = np.log(np.array([50, 20, 5, 1]) / 76)
    centred = falling - falling.mean()
    np.testing.assert_allclose(own["KD, adjusted teacher"], centred)
    np.testing.assert_allclose(own["LTKD, n = 5"], 0.8 * centred)
    p = np.exp(0.8 * falling / 3)  # two groups of five classes: three and two, the empty one last
    steps = 3 * np.log([p[0] + p[1] + p[2]] * 3 + [p[3]])
    np.testing.assert_allclose(own["LTKD, n = 2"], steps - steps.mean())
    assert (taken["scatter"] < 1e-12).all()  # every image is alike, so every batch is
    np.testing.assert_allclose(taken["low"], taken["high"])
    strengths = bias.correction_strengths(taken)
    assert [name.replace("\u00a0", " ") for name in strengths.index] == list(taken["by"].unique())
    assert list(strengths.iloc[0]) == [1, 0, 0]
    assert list(strengths.iloc[2]) == [0.8, round(0.2 * centred.std(), 2), 0]
    drop = falling[:3].mean() - falling[3]  # two steps: the slope is the ratio of drops
    whole = bias.corrections(teacher, counts, [2], temperature=3.0, size=500, draws=2)
    assert list(whole["mean"]) == list(taken[taken["by"] != "LTKD, n = 5"]["mean"])  # all 30 images
    slope, far, _ = strengths.iloc[1]
    assert slope == round((steps[0] - steps[3]) / drop, 2)
    assert far == round(np.sqrt(np.mean((steps - steps.mean() - centred) ** 2)), 2)


def test_classes_of_one_size_have_no_slope():
    logits = np.random.default_rng(0).normal(size=(60, 6))
    taken = bias.corrections(logits, np.full(6, 10), [2, 3], temperature=4.0, size=8, draws=5)
    assert bias.correction_strengths(taken)["slope between groups"].isna().all()


def test_confusion_by_group():
    data = type("D", (), {"test_labels": [0, 1, 2, 2], "groups": lambda self, n: [0, 1, 2]})()
    frame = runs({"kd": [0.0]}).assign(label="KD")
    found = bias.confusion(frame, {"kd0": np.array([0, 1, 0, 2])}, data)
    tail = found[found["true"] == "tail"].set_index("predicted")["share"]
    assert tail.to_dict() == {"head": 50, "medium": 0, "tail": 50}
