"""The statistics against closed forms and numbers worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltkd.report import claims, tables
from ltkd.report.paper import Setting
from ltkd.report.tables import Interval, verdict
from ltkd.study import FITTED


def runs(values: dict[str, list[float]], **columns: object) -> pd.DataFrame:
    """A row a method and seed; all metrics hold the same value."""
    rows = [
        {"method": m, "seed": s, "ours": False, "variant": "", "run": f"{m}{s}", "holdout": 0,
         "gamma": 20.0, "teacher": ""}
        | dict.fromkeys((*tables.METRICS, "best_all"), v) | columns
        for m, series in values.items() for s, v in enumerate(series)
    ]  # fmt: skip
    return pd.DataFrame(rows)


class Study:
    """The part of a study that the tables read."""

    def __init__(self, frame: pd.DataFrame, schedule: str = "steps") -> None:
        self.frame, self.schedule = frame, schedule

    def results(self, part: str) -> pd.DataFrame:
        return self.frame

    def missing(self, part: str) -> pd.DataFrame:
        return pd.DataFrame(columns=["run", "reason"])


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.30265, half-width 4.30265 / sqrt(3).
    found = tables.t_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, abs=1e-4)


def test_a_prediction_is_for_new_seeds():
    # As above, and m = 3 new seeds scatter as much again: half-width 4.30265 sqrt(1/3 + 1/3).
    found = tables.prediction([1.0, 2.0, 3.0], 3)
    assert found.high - found.mean == pytest.approx(4.30265 * (2 / 3) ** 0.5, abs=1e-4)
    one = tables.prediction([1.0, 2.0, 3.0], 1)  # a single new seed: sqrt(1/3 + 1)
    assert one.high - one.mean == pytest.approx(4.96827, abs=1e-4)
    both = runs({"kd": [1.0, 2.0, 3.0], "ltkd": [1.0, 2.0, 3.0]})
    after = both.assign(tau=1.0, as_trained=False, tail=both["tail"] + 4, label="")
    stated = tables.to_reproduce(both, after[after["run"] != both["run"].iloc[-1]])
    assert stated.loc["kd", "tail"] == "−1.5 to 5.5"
    assert stated.loc["kd", "tail, prior removed"] == "2.5 to 9.5"
    assert stated.loc["ltkd", "tail, prior removed"] == "—"  # of one seed it is not known
    equal = tables.prediction([2.0, 2.0, 2.0], 3)
    assert equal.mean == 2
    assert np.isnan([equal.low, equal.high]).all()
    same = runs({"kd": [2.0, 2.0, 2.0]})
    assert "no interval" in tables.to_reproduce(same, after[:0]).loc["kd", "tail"]


def test_t_interval_against_scipy():
    x = np.random.default_rng(0).normal(50, 3, 7)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    found = tables.t_interval(x)
    np.testing.assert_allclose([found.low, found.high], expected)


def test_one_value_has_no_interval_and_says_so():
    one = tables.t_interval([51.0])
    assert np.isnan([one.low, one.high]).all()
    assert one.plus_minus() == "51.0 (1)"
    assert one.difference() == "+51.0 (no interval)"
    assert verdict(one) == "not resolved"
    assert tables.t_interval([np.nan]).plus_minus() == "—"


def test_a_note_says_which_images_were_counted():
    frame = runs({"kd": [1.0, 2.0], "ltkd": [1.0, 2.0]}, dataset="cifar100")
    assert "on the balanced test set, last" in tables.note(frame).data
    assert "on the folder's test images" in tables.note(frame.assign(dataset="folder")).data
    assert (
        "on 25 training images a class, held out, last"
        in tables.note(frame.assign(holdout=25)).data
    )


def test_missing_values_do_not_count():
    assert tables.t_interval([1.0, np.nan, 3.0]) == tables.t_interval([1.0, 3.0])


def test_strings():
    assert Interval(51.08, 50.78, 51.38, 5).plus_minus() == "51.1 ± 0.3 (5)"
    assert Interval(51.08, 50.78, 51.38, 5).plus_minus(2) == "51.08 ± 0.30 (5)"
    assert Interval(46.9, 46.9, 46.9, 2).plus_minus() == "46.9 (2, equal)"
    assert Interval(-2.1, -3.9, -0.3, 5).difference() == "−2.1 [−3.9, −0.3]"
    assert Interval(-2.1, -2.1, -2.1, 2).difference() == "−2.1 (2, equal)"
    assert Interval(-2.1, n=1).difference() == "−2.1 (no interval)"
    assert tables.minus("LTKD", "KD, prior removed") == "LTKD − (KD, prior removed)"


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 2, None, "confirmed"), (-2, -0.1, None, "contradicted"),
        (-0.1, 2, None, "not resolved"), (0.0, 2, None, "not resolved"),
        (-0.9, 0.9, 1.0, "confirmed"), (1.1, 3, 1.0, "contradicted"),
        (-3, -1.1, 1.0, "contradicted"), (0.5, 1.5, 1.0, "not resolved"),
    ],
)  # fmt: skip
def test_verdicts(low, high, margin, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), margin) == expected


@pytest.mark.parametrize("margin", [None, 1.0])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.7, -1.7])
def test_seeds_that_are_all_equal_prove_nothing(value, margin):
    gap = tables.t_interval([value] * 3)
    assert gap.side == "not resolved"
    assert verdict(gap, margin) == "not resolved"


def test_paired_differences_use_the_seeds_that_both_have():
    frame = runs({"kd": [50.0, 60.0, 70.0], "ltkd": [52.0, 63.0]})
    gap = tables.interval_of(tables.paired(frame, "kd"), method="ltkd", metric="tail")
    # Differences 2 and 3: mean 2.5, half-width t(0.975, 1) * 0.7071 / sqrt(2) = 12.7062 * 0.5.
    assert (gap.mean, gap.n) == (2.5, 2)
    assert gap.high - gap.mean == pytest.approx(6.3531, abs=1e-4)
    # Pairing takes the seeds' common variation out: the unpaired interval is far wider.
    assert tables.t_interval(frame.query("method == 'kd'")["tail"]).high > 80


def test_paired_without_the_reference_is_empty():
    frame = tables.paired(runs({"ltkd": [1.0, 2.0]}), "kd")
    assert frame.empty
    assert tables.wide(frame).empty
    assert "Not tested here" in tables.say(frame).data
    assert tables.interval_of(frame, method="ltkd", metric="tail").n == 0


def test_paired_refuses_rows_of_two_settings():
    with pytest.raises(ValueError, match="one setting"):
        tables.paired(pd.concat([runs({"kd": [1.0]}), runs({"kd": [2.0]})]), "kd")


def test_the_sentence():
    gaps = tables.paired(runs({"kd": [50.0, 50.0, 50.0], "ltkd": [51.0, 52.0, 53.0]}), "kd")
    row = gaps[gaps["metric"] == "tail"].iloc[0]
    assert tables.sentence(row) == (
        "**LTKD − KD** on the tail: +2.0 points [−0.5, 4.5], n = 3 seeds, paired: **not resolved**"
    )


def test_main_table_marks_the_best_epoch():
    table = tables.accuracies(runs({"kd": [50.0, 52.0], "student": [40.0]}))
    assert list(table.columns) == ["all", "head", "medium", "tail", tables.BEST]
    assert "†" in tables.BEST
    assert table.loc["KD", "tail"] == "51.0 ± 12.7 (2)"
    assert table.loc["Student alone", "all"] == "40.0 (1)"
    frame = runs({"kd": [50.0, 52.0], "student": [40.0]}, dataset="cifar100")
    assert "n = 1 to 2 seeds" in tables.note(frame).data


def test_bootstrap_against_the_binomial():
    # One class of 400 images, 80 % right: standard error sqrt(0.8 * 0.2 / 400) = 2 points.
    scores = np.repeat([1.0, 0.0], [320, 80])
    found = tables.bootstrap(scores, np.zeros(400, int), np.zeros(1, int), draws=4000)
    all_ = tables.interval_of(found, metric="all")
    assert all_.mean == pytest.approx(80)
    assert (all_.high - all_.low) / 2 == pytest.approx(1.96 * 2, rel=0.08)
    assert list(found["metric"]) == ["all", "head"]  # a group without classes has no row


def test_bootstrap_means_over_classes_not_images():
    # Two head classes of 10 and 30 images, all right and all wrong: 50 % by class, 25 % by image.
    labels = np.repeat([0, 1], [10, 30])
    found = tables.bootstrap((labels == 0) * 1.0, labels, np.zeros(2, int), draws=50)
    assert tables.interval_of(found, metric="head").mean == pytest.approx(50)
    assert tables.interval_of(found, metric="all").mean == pytest.approx(25)


def test_bootstrap_is_deterministic():
    labels, scores = np.arange(30) % 3, np.arange(30) % 2
    first, second = (tables.bootstrap(scores, labels, np.arange(3), draws=20) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_accuracies_over_images_by_hand():
    # KD's two runs agree on the head (all right) and on the tail (one of two); of the medium's four
    # images one has two and the other none. One right and one wrong resample to 0 and to 100.
    labels = np.repeat([0, 1, 2], [4, 4, 2])
    data = type("D", (), {"test_labels": labels, "groups": lambda self, n: [0, 1, 2]})()
    guesses = {"kd0": [0, 0, 0, 0, 1, 1, 0, 0, 2, 0], "kd1": [0, 0, 0, 0, 2, 2, 2, 0, 2, 1],
               "ltkd0": [0, 0, 1, 1, 1, 1, 1, 1, 2, 2]}  # fmt: skip
    frame = runs({"kd": [0.0, 0.0], "ltkd": [0.0]})
    frame["label"] = frame["method"].str.upper()
    table = tables.over_images(frame, guesses, data)
    found = table.map(lambda cell: float(cell.split()[0]))
    assert found.loc["KD"].to_dict() == {"all": 60, "head": 100, "medium": 25, "tail": 50}
    assert found.loc["LTKD"].to_dict() == {"all": 80, "head": 50, "medium": 100, "tail": 100}
    assert table.loc["KD", "tail"] == "50.0 [0.0, 100.0]"


def test_groups_are_counted_by_hand():
    data = type("D", (), {
        "counts": [3, 60, 20, 50, 2, 10, 1], "groups": lambda self, n: [2, 0, 1, 0, 2, 1, 2],
        "class_names": list("abcdefg"), "test_labels": np.repeat(range(7), [1, 4, 3, 4, 1, 3, 1]),
    })()  # fmt: skip
    table = tables.group_table(data)
    assert list(table.index) == ["head", "medium", "tail"]
    assert table.loc["head"].to_dict() == {
        "classes": 2, "training images": 110, "largest": 60, "smallest": 50,
        "test images": 8, "one test image, points": 12.5}  # fmt: skip
    assert table["training images"].tolist() == [110, 30, 6]
    assert table["test images"].tolist() == [8, 6, 3]
    assert table["one test image, points"].tolist() == [12.5, 16.67, 33.33]


def test_frequency_and_accuracy_by_hand():
    # Ranks of the frequencies 4 3 2 1. KD's of the accuracies, means over seeds: 4 2 3 1, so that
    # rho = 1 - 6 (1 + 1) / (4 x 15); LTKD's are turned about: 1 3 2 4, 1 - 6 (9 + 9) / 60.
    rows = [{"label": label, "class_id": c, "count": count, "group": group,
             "accuracy": accuracy + c * seed}
            for label, course in (("KD", (90, 70, 80, 50)), ("LTKD", (50, 80, 70, 90)))
            for c, (count, group, accuracy) in enumerate(zip((40, 20, 10, 5), (0, 1, 2, 2), course,
                                                             strict=True))
            for seed in (-9, 9)]  # fmt: skip
    first, second = tables.frequency_sentence(pd.DataFrame(rows)).data.split("\n")
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

    gains = tables.class_gains(per_class(steps))
    assert gains["rank"].tolist() == [*range(48)] * 2
    assert gains["gain"].tolist()[14:18] == [-7, -7.5, -6, -6.5]
    (row,) = tables.border_jumps(gains).to_dict("records")
    half = 12.7062 / 2**0.5 * 2**0.5  # t(0.975, 1), of two seeds 2 apart
    first = f"−1.0 [−{1 + half:.1f}, {half - 1:.1f}]"
    assert row == {"from head to medium": first, "from medium to tail": "−12.0 (2, equal)",
                   "elsewhere": "−4.0 ± 0.0", "seeds": "2"}  # fmt: skip


def test_borders_of_small_groups_are_not_looked_at():
    gains = tables.class_gains(per_class(lambda rank, seed: 0.0))
    assert tables.border_jumps(gains, width=9).empty
    without = per_class(lambda rank, seed: 0.0).query("method == 'ltkd'")
    assert tables.border_jumps(tables.class_gains(without)).empty


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
    first, right = tables.prediction_bias(frame, answers, even).to_dict("records")
    (second,) = tables.prediction_bias(
        frame[:1], {"kd0": np.repeat(np.arange(6), 7)}, uneven
    ).to_dict("records")
    for row in (first, second):
        assert [row[name] for name in tables.BIAS[:2]] == pytest.approx([50, 100], abs=1e-3)
    assert [right[name] for name in tables.BIAS] == pytest.approx([0, 0, 100, 100], abs=1e-3)
    pairs = list(zip(guess.tolist(), even.test_labels.tolist(), strict=True))
    placed = [(a, b) for a, b in pairs if a // 2 == b // 2]
    own = sum(a == b for a, b in placed)
    assert first["right group"] == pytest.approx(100 * len(placed) / 42)
    assert first["right class in it"] == pytest.approx(100 * own / len(placed))


def test_without_a_long_tail_there_is_no_bias_to_find():
    data = Images([7] * 6)
    for counts in (np.full(6, 37), np.array([320, 320, 80, 80, 20, 20])):  # no slope within groups
        data.counts = counts
        found = tables.prediction_bias(runs({"kd": [0.0]}).assign(label="KD"), {}, data)
        assert found.empty


def two_classes() -> pd.DataFrame:
    """Curves of two taus: nine training images and one; LTKD's second seed a point higher."""
    levels = {("kd_ce1", 0.0): (80, 20), ("kd_ce1", 1.0): (60, 50),
              ("ltkd", 0.0): (70, 40), ("ltkd", 1.0): (50, 56)}  # fmt: skip
    return pd.DataFrame([
        {"method": method, "label": tables.LABELS[method], "seed": seed, "tau": tau,
         "as_trained": tau == 0, "class_id": c, "count": (9, 1)[c], "group": c,
         "accuracy": level[c] + seed * (method == "ltkd")}
        for (method, tau), level in levels.items() for seed in (0, 1) for c in (0, 1)
    ])  # fmt: skip


def test_each_test_set_has_a_share_of_its_own():
    # KD's accuracy at tau 0 and 1 is 74 and 59 where classes are as in training (weights 9 to 1),
    # 50 and 55 where they are alike, 35 and 52.5 at s = -0.5 (1 to 3); LTKD's 67 and 50.6, 55 and
    # 53, 47.5 and 54.5, and half a point more over both seeds.
    found = tables.deployment(two_classes()).set_index(["method", "s"])
    for s, kd, ltkd in ((1.0, (0, 0), (0, -6.5)), (0.0, (1, -5), (0, 0.5)),
                        (-0.5, (1, -17.5), (1, -4.5))):  # fmt: skip
        for method, (tau, trained) in (("kd_ce1", kd), ("ltkd", ltkd)):
            assert found.loc[(method, s), "tau"] == tau
            assert found.loc[(method, s), "trained"] == pytest.approx(trained)
        assert found.loc[("kd_ce1", s), "mean"] == pytest.approx(0)
    assert found.loc[("ltkd", -0.5), "mean"] == pytest.approx(2.5)
    assert found.loc[("ltkd", -0.5), "high"] == pytest.approx(2.5 + 12.7062 / 2, abs=1e-3)
    shown = tables.deployment_table(found.reset_index()).replace("\u00a0", " ", regex=True)
    assert shown.columns.tolist() == ["s = 1", "s = 0.5", "s = 0", "s = −0.5"]
    assert shown.loc["KD, weights 1 and 1 (ours)", "s = 0"] == "−5.0 → 0, τ 1"
    assert shown.loc["LTKD", "s = −0.5"] == "−4.5 → +2.5 [−3.9, 8.9], τ 1"
    assert tables.deployment(two_classes().query("method == 'ltkd'")).empty
    # A third class, of which there is no test image, changes nothing.
    unseen = two_classes().query("class_id == 1").assign(class_id=2, accuracy=np.nan)
    again = tables.deployment(pd.concat([two_classes(), unseen], ignore_index=True))
    pd.testing.assert_frame_equal(again, tables.deployment(two_classes()))


def test_the_best_share_is_one_a_method():
    found = tables.at_best_share(two_classes())
    assert found.groupby("label")["tau"].unique().map(list).to_dict() == {
        "KD, weights 1 and 1, τ = 1": [1.0], "LTKD, τ = 0": [0.0]}  # fmt: skip
    gains = tables.class_gains(found)
    assert gains["gain"].tolist() == [10, -10, 11, -9]  # 70 − 60 and 40 − 50, by seed


def test_two_sides_are_compared_one_by_one():
    table = tables.identities({
        "below": ([1.0, 2.0], [1.5, 2.25]), "above": ([1.5, 2.25], [1.0, 2.0]),
        "same mean": ([1.0, 2.0], [2.0, 1.0]),
        "near": ([0.0, 0.0], [0.0, 9e-13]), "not so near": ([0.0, 0.0], [0.0, 2e-12]),
    })  # fmt: skip
    assert table.loc["below", ["left, mean", "right, mean"]].tolist() == ["1.5", "1.875"]
    assert table["largest difference"].astype(float).tolist() == [0.5, 0.5, 1, 9e-13, 2e-12]
    assert table["equal to 1e-12"].tolist() == ["no", "no", "no", "yes", "no"]


SETTING = {"dataset": "cifar100", "gamma": 100.0, "student": "resnet8x4", "epochs": 240}


def test_settings_give_runs_without_a_teacher_to_every_pair():
    alone = runs({"student": [40.0]}, teacher="", **SETTING)
    a = runs({"kd": [42.0]}, teacher="resnet32x4", **SETTING)
    b = runs({"kd": [43.0]}, teacher="vgg13", **SETTING)
    found = dict(tables.settings(Study(pd.concat([alone, a, b])), "distillation"))
    assert [s.teacher for s in found] == ["resnet32x4", "vgg13"]
    assert all(list(rows["method"]) == ["student", "kd"] for rows in found.values())


def test_beside_the_paper_differences_only_in_its_setting():
    frame = runs({"kd": [42.0, 43.0], "kd_adjusted": [45.0, 46.0]})
    same = Setting("cifar100", 100.0, "resnet32x4", "resnet8x4", 240)
    heading, table = tables.beside_paper(frame, same, "secondary")
    assert "same setting" in heading.data
    assert table.loc["KD", "all: paper"] == "42.48"
    assert table.loc["KD", "all: ours − paper"] == "+0.02"
    assert table.loc["KD, adjusted teacher (ours)", "all: ours − paper"] == "—"
    assert table.loc["LTKD (not run here)", "tail: paper"] == "27.21"
    assert len(tables.against_paper(frame, same, "secondary")) == 2
    for other in (same._replace(epochs=60), same._replace(dataset="digits"),
                  same._replace(gamma=10.0), same._replace(schedule="one_cycle")):  # fmt: skip
        heading, table = tables.beside_paper(frame, other, "secondary")
        assert "another setting" in heading.data
        assert "no difference is computed" in heading.data
        assert not any("−" in column for column in table.columns)
        assert all("other setting" in column or "ours" in column for column in table.columns)
        assert tables.against_paper(frame, other, "secondary").empty


def test_steps_add_up():
    frame = runs({"kd": [50.0, 51.0], "kd_ce1": [53.0, 52.0], "ltkd": [60.0, 61.0]})
    path = ["kd", "kd_ce1", "absent", "ltkd"]
    found = tables.steps(frame, path, "tail")
    assert list(found["kind"]) == ["total", "step", "step", "total"]
    np.testing.assert_allclose(found["mean"], [50.5, 2.0, 8.0, 60.5])
    np.testing.assert_allclose(found["start"], [0, 50.5, 52.5, 0])
    hole = frame[~((frame["method"] == "kd_ce1") & (frame["seed"] == 0))]  # the other seed alone
    np.testing.assert_allclose(tables.steps(hole, path, "tail")["mean"], [51, 1, 9, 61])


def test_teacher_mass_of_a_known_teacher():
    # Every image gets the probabilities 0.6, 0.3, 0.1, one class a group.
    logits = np.log(np.tile([0.6, 0.3, 0.1], (30, 1)))
    labels = np.arange(30) % 3
    mass = tables.teacher_mass(
        logits, labels, [0, 1, 2], "balanced", size=9, draws=3, temperature=1.0
    )
    share = mass.groupby(["stage", "group"])["share"].mean()
    np.testing.assert_allclose(share["teacher"][list(tables.GROUPS)], [60, 30, 10])
    np.testing.assert_allclose(share["rebalanced"], [100 / 3] * 3)
    np.testing.assert_allclose(share["labels"], [100 / 3] * 3)
    other = tables.teacher_mass(
        logits, labels, [0, 1, 2], "long-tailed", size=9, draws=3, temperature=1.0
    )
    head, removed = tables.mass_effects(pd.concat([mass, other])).values()
    assert head.mean == pytest.approx(60 - 100 / 3)
    assert removed.mean == pytest.approx(50)


def test_a_teachers_excess_of_the_head_over_test_images():
    """Two classes, 400 images each; the teacher gives the head 0.9 or 0.7 of its probability for
    the head's images, half of them each, and 0.3 for the others: 0.55 - 0.5, and only the first
    class has any spread, 0.1, of which the interval is 1.96 standard errors of a mean of 800."""
    p = np.r_[np.tile([0.9, 0.7], 200), np.full(400, 0.3)]
    labels = np.repeat([0, 1], 400)
    logits = np.log(np.stack([p, 1 - p], 1))
    found = tables.head_excess(logits, labels, [0, 1], 1.0)
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
    found = tables.handed_on(runs, answers, teacher, data).set_index("run")
    head, up, inside, down = (found[name] for name in tables.HANDED_ON)
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
    taken = tables.corrections(teacher, counts, [2, 5], temperature=3.0, size=8, draws=5)
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
    strengths = tables.correction_strengths(taken)
    assert [name.replace("\u00a0", " ") for name in strengths.index] == list(taken["by"].unique())
    assert list(strengths.iloc[0]) == [1, 0, 0]
    assert list(strengths.iloc[2]) == [0.8, round(0.2 * centred.std(), 2), 0]
    drop = falling[:3].mean() - falling[3]  # two steps: the slope is the ratio of drops
    slope, far, _ = strengths.iloc[1]
    assert slope == round((steps[0] - steps[3]) / drop, 2)
    assert far == round(np.sqrt(np.mean((steps - steps.mean() - centred) ** 2)), 2)


def test_cells_without_a_seed_in_common_make_no_steps():
    frame = pd.concat(
        [runs({"kd": [50.0]}), runs({"kd_ce1": [51.0, 52.0], "ltkd": [60.0]}).iloc[1:]]
    )
    frame.loc[frame["method"] == "ltkd", "seed"] = 1
    assert tables.steps(frame, ["kd", "kd_ce1", "ltkd"], "tail").empty


def test_methods_whose_networks_are_gone_are_named():
    frame = runs({"kd": [50.0], "catkd": [51.0]})
    frame["label"] = frame["method"].str.upper()
    assert tables.not_kept(frame, frame) == []
    (line,) = tables.not_kept(frame, frame[frame["method"] == "kd"])
    assert "not kept" in line.data
    assert line.data.endswith(": CATKD.*")


def test_numbers_of_groups_that_did_not_run_are_no_confirmation():
    data = type("D", (), {"counts": np.ones(100)})()
    study = type("S", (), {"data": lambda self, gamma: data})()
    frame = pd.concat([runs({"ltkd": [50.0, 51.0]}).assign(n_groups=n) for n in (3, 10, 100)])
    found = claims.group_tests(study, Setting("cifar100", 100.0, "vgg13", "vgg8", 30), frame)
    assert [(test.text, test.gap.n) for test in found] == [
        ("n = 10 − n = 3, all", 2), ("n = 4, 5, 20, 25 − n = 3, all", 0)]  # fmt: skip


def test_the_margin_is_the_papers_largest_change():
    assert claims.group_margin() == pytest.approx(1.30)  # WRN-40-2-ShuffleNetV1, 48.60 to 49.90


def test_a_study_without_students_has_no_tests():
    study = type("S", (), {"results": lambda self, part: pd.DataFrame()})()
    columns = ["setting", "claim", "comparison", "verdict", "points", "n"]
    tests = claims.claims(study)
    assert (list(tests.columns), len(tests)) == (columns, 0)


def test_a_claim_needs_all_of_its_tests():
    def judge(*found: str) -> str:
        rows = [{"setting": "s", "claim": 6, "verdict": v} for v in found]
        return claims.verdicts(pd.DataFrame(rows))["verdict"].iloc[0]

    assert judge("confirmed", "confirmed") == "confirmed"
    assert judge("confirmed", "not tested here") == "confirmed where tested"
    assert judge("confirmed", "not resolved") == "not resolved"
    assert judge("confirmed", "contradicted", "not resolved") == "contradicted"
    assert judge("not tested here") == "not tested here"


def test_every_claim_of_a_study_whose_answers_are_known():
    common = {"dataset": "cifar100", "gamma": 100.0, "student": "vgg8", "epochs": 9}
    pair = ("vgg13", "vgg8")
    seeds = np.array([0.0, 0.1, 0.2])

    def cells(by: str, means: dict) -> pd.DataFrame:
        values = {key: list(m + seeds * (1 + k / 10)) for k, (key, m) in enumerate(means.items())}
        parts = [runs({"ltkd": series}).assign(**{by: key}) for key, series in values.items()]
        return pd.concat(parts).assign(teacher="vgg13", **common)

    parts = {
        "distillation": cells("method", {"kd": 50, "ltkd": 55, "dkd": 56}),
        "ablations": cells("variant", {"cross_biased": 50, "cross_rebalanced": 52,
                                       "within_only": 51, "cross_and_within": 55}),
        "group_count": cells("n_groups", {3: 55, 4: 55.5, 5: 40}),
        "teachers": runs({"teacher": [60.0]}).assign(**common | {"student": "vgg13"}, teacher=""),
    }  # fmt: skip
    labels = np.arange(40) % 20
    data = type("D", (), {
        "gamma": 100.0, "counts": np.arange(20, 0, -1),
        "groups": lambda self, n: np.repeat([0, 1, 2], [7, 6, 7]),
    })()  # fmt: skip
    study = type("S", (), {
        "parameters": type("P", (), {"gammas": [100.0]}), "schedule": "steps",
        "pairs": [pair], "temperature": 1.0, "batch": 64, "results": lambda self, part: parts[part],
        "data": lambda self, gamma=0: data,
        # Twice the logit in the head, a little more of it from image to image.
        "teacher_logits": lambda self, pair, part: (
            np.linspace(1, 1.1, 40)[:, None] * np.repeat([2, 1, 1], [7, 6, 7]), labels),
    })()  # fmt: skip
    tests = claims.claims(study)
    yes, no = "confirmed", "contradicted"
    assert claims.verdicts(tests)["verdict"].tolist() == [yes, yes, no, yes, no, no]
    assert tests.query("claim == 5")["verdict"].tolist() == [yes, no]
    expected = [no] * 2 + ["not tested here"] * 6
    assert tests.query("claim == 6")["verdict"].tolist() == expected
    assert tests.query("claim == 3")["points"].item().startswith("−4.9")
    data.gamma = 10.0  # the study's first factor is another one than these runs have
    first = claims.claims(study).query("claim == 1")
    assert first["verdict"].tolist() == ["not tested here"]


def adjusted() -> pd.DataFrame:
    """KD gains 4 points on every metric at tau = 1; balanced softmax stands there as trained."""
    parts = [
        runs({"kd": [50.0, 52.0]}, tau=0.0, as_trained=True, label="KD"),
        runs({"kd": [54.0, 56.0]}, tau=1.0, as_trained=False, label="KD"),
        runs({"balanced_softmax": [55.0, 55.0]}, tau=1.0, as_trained=True, label="BS"),
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_headline_says_which_number_is_the_tail_s():
    both = runs({"kd": [50.0, 52.0], "ltkd": [53.0, 56.0]})
    both.loc[both["method"] == "ltkd", "tail"] += 10
    text = claims.headline(Setting("digits", 1.0, "a", "b", 1), both).data
    assert "**LTKD − KD** is +13.5 [" in text
    assert "points on the tail (" in text.split("; ")[0]
    assert " and +3.5 [" in text.split(" on the tail (")[1]


def test_the_paper_s_pattern_is_tested_in_our_cells():
    cells = {"baseline": [50.0, 50.5], "cross_biased": [48.0, 49.5], "cross_rebalanced": [51.0, 52],
             "within_only": [53.0, 53.5], "cross_and_within": [58.0, 58.7]}  # fmt: skip
    own = runs(cells)
    table = claims.ablation_pattern(own.assign(variant=own["method"], method="ltkd"))
    # Together 8 and 8.2, apart 1 + 3 and 1.5 + 3: 4 and 3.7 more.
    assert [text.split(" [")[0] for text in table["points"]] == ["+1.5", "−1.2", "+3.9", "+3.9"]
    assert table["verdict"].tolist()[2:] == ["confirmed"] * 2
    some = own[own["method"] != "baseline"]
    assert claims.ablation_pattern(some.assign(variant=some["method"])).empty


def test_the_prior_removed_is_a_method_of_its_own():
    rows = tables.prior_removed(adjusted())
    assert set(rows["method"]) == {"kd_removed"}
    assert rows["all"].tolist() == [54.0, 56.0]
    both = tables.joined(runs({"kd_ce1": [50.0, 52.0], "ltkd": [53.0, 53.0]}), adjusted().replace(
        {"method": {"kd": "kd_ce1"}}))  # fmt: skip
    row = claims.questions(both, claims.AFTER).loc[
        "KD, weights 1 and 1, prior removed (ours) − LTKD"
    ]
    assert row["tail"].startswith("+2.0 [")
    setting = Setting("digits", 1.0, "a", "b", 1)
    text = claims.headline(setting, both).data
    assert "**LTKD − (KD, weights 1 and 1, prior removed)** is −2.0 [" in text
    assert "paired over n = 2 seeds" in text
    one = claims.headline(setting, both[both["seed"] == 0]).data
    assert "One seed, for one split" in one
    assert "intervals, paired" not in one
    more = pd.concat([both, runs({"kd": [50.0]})])
    assert "paired over n = 1 to 2 seeds" in claims.headline(setting, more).data
    none = claims.headline(setting, both[both["method"] != "ltkd"]).data
    assert none.endswith("LTKD or its references are not among the runs.")


def test_what_stands_after_training():
    table = tables.after_training(adjusted())
    assert table.loc["KD", "all, as trained"].startswith("51.0 ± ")
    assert table.loc["KD", "tail"].startswith("55.0 ± ")
    assert table.loc["BS", "all, as trained"] == table.loc["BS", "all"]


def test_a_setting_is_chosen_as_trained_and_with_tau():
    # As trained T = 4 is better by 1; at tau = 0.5 T = 2 is, by 2; tau = 1 is too far for both.
    def at(temperature: int, tau: float, value: float) -> pd.DataFrame:
        name = f"KD, temperature {temperature}"
        where = {"variant": name, "tau": tau, "label": "KD"}
        one = runs({"kd": [value - 1, value + 1]}, **where)
        return one.assign(run=name + one["run"])

    trained = pd.concat([at(2, 0, 50), at(4, 0, 51)])
    curves = pd.concat([trained, at(2, 0.5, 56), at(4, 0.5, 54), at(2, 1, 52), at(4, 1, 53)])
    table = tables.chosen(trained, curves)
    assert table["setting"].to_dict() == {
        "KD": "temperature 4",
        "KD, τ chosen too": "temperature 2",
    }
    assert table["τ"].to_dict() == {"KD": "as trained", "KD, τ chosen too": 0.5}
    assert table["all"].tolist() == ["51.0", "56.0"]
    assert table["all, over the settings (n)"].tolist() == ["50.0 to 51.0 (2)", "54.0 to 56.0 (2)"]
    one = tables.chosen(trained, curves[curves["variant"] == "KD, temperature 4"])
    assert one["all, over the settings (n)"].tolist() == ["50.0 to 51.0 (2)", "54.0 to 54.0 (1)"]
    assert list(tables.chosen(trained, curves[:0]).index) == ["KD"]


def test_curves_are_compared_at_one_height():
    # Head falls 10 a unit of tau in all; KD (1, 1) reaches 60 at tau = 1, where its tail is 30;
    # LTKD, 5 lower on the head, is there at tau = 0.5 with 25 + 4; DKD never comes so low.
    rows = []
    for method, head, tail, slope in (
        ("kd_ce1", 70, 20, 10),
        ("ltkd", 65, 25, 8),
        ("dkd", 90, 0, 0),
    ):
        for tau in (0.0, 1.0, 2.0):
            values = {
                "head": head - 10 * tau,
                "tail": tail + slope * tau,
                "medium": 40.0,
                "all": 0.0,
            }
            rows += [{"run": f"{method}{seed}", "method": method, "ours": False, "seed": seed,
                      "tau": tau, **values} for seed in (0, 1)]  # fmt: skip
    gaps = tables.at_equal_head(pd.DataFrame(rows))
    assert set(gaps["method"]) == {"ltkd"}
    found = gaps.set_index("metric")["mean"]
    assert found.to_dict() == pytest.approx({"all": 0, "medium": 0, "tail": -1})
    assert set(gaps["n"]) == {2}
    assert tables.at_equal_head(pd.DataFrame(rows), "kd").empty
    (line,) = tables.not_reached(pd.DataFrame(rows))  # told apart from what did not run
    assert line.data.endswith("that head accuracy: DKD (seed 0, 1).*")
    assert tables.not_reached(pd.DataFrame(rows[:-6])) == []


def test_values_of_tau_with_the_same_head_are_one_point():
    # LTKD's head is 60 at tau = 0.5, 1 and 1.5, where its tail is 20, 24 and 40: 28 in the mean.
    rows = []
    for method, course in (
        ("kd_ce1", [(70, 10), (65, 15), (60, 20), (50, 30), (40, 40)]),
        ("ltkd", [(70, 10), (60, 20), (60, 24), (60, 40), (50, 50)]),
    ):
        rows += [{"run": method, "method": method, "ours": False, "seed": 0, "tau": k / 2,
                  "head": head, "tail": tail, "medium": 0.0, "all": 0.0}
                 for k, (head, tail) in enumerate(course)]  # fmt: skip
    for order in (rows, rows[::-1]):
        gaps = tables.at_equal_head(pd.DataFrame(order)).set_index("metric")["mean"]
        assert gaps["tail"] == pytest.approx(28 - 20)


def test_questions_name_what_did_not_run():
    table = claims.questions(runs({"kd": [50.0, 51.0], "kd_ce1": [52.0, 53.01]}))
    assert table.index[0] == "KD, weights 1 and 1 (ours) − KD"
    assert table["question"].str.len().max() <= 50  # longer cells would be cut off on the page
    assert table.iloc[0][["tail", "on the tail"]].tolist() == ["+2.0 [1.9, 2.1]", "higher"]
    assert set(table["on the tail"].iloc[1:]) == {"not tested here"}
    ran, line = claims.asked_here(table)
    assert list(ran.index) == list(table.index[:1])
    assert "here: LTKD − KD, weights 1 and 1; " in line.data
    assert [type(one) for one in claims.asked_here(ran)] == [pd.DataFrame]
    (line,) = claims.asked_here(table.iloc[1:])
    assert line.data.startswith("*Not tested here: ")


def test_confusion_by_group():
    data = type("D", (), {"test_labels": [0, 1, 2, 2], "groups": lambda self, n: [0, 1, 2]})()
    frame = runs({"kd": [0.0]}).assign(label="KD")
    found = tables.confusion(frame, {"kd0": np.array([0, 1, 0, 2])}, data)
    tail = found[found["true"] == "tail"].set_index("predicted")["share"]
    assert tail.to_dict() == {"head": 50, "medium": 0, "tail": 50}


def test_every_table_marks_the_rivals_that_the_paper_lacks():
    frame = runs({"kd": [1, 2], "ltkd": [2, 3], "balanced_softmax": [3, 4]})
    assert list(tables.accuracies(frame).index) == ["KD", "LTKD", "Balanced softmax (ours)"]
    differences = tables.wide(tables.paired(frame, "kd"))
    assert list(differences.index) == ["LTKD", "Balanced softmax (ours)"]
    for label in ("KD, temperature 2", "LTKD, alpha 4", "DKD, beta 2"):
        assert tables.marked(label) == label
    for label in ("KD, adjusted teacher, temperature 2", "KD, weights 1 and 1, prior removed",
                  "Bal. softmax + KD (naive), ce_weight 1", "KD, prior removed"):  # fmt: skip
        assert tables.marked(label) == f"{label} (ours)"


def test_settings_stand_by_their_distance_from_the_paper_s_cell_only_in_its_setting():
    frame = pd.concat([
        runs({"ltkd": all_}).assign(variant=name, tail=tail)
        for name, all_, tail in (("far", [49.08, 49.08], 20.0), ("near", [50.0, 52.0], 28.21))
    ])  # fmt: skip
    same = Setting("cifar100", 100.0, "resnet32x4", "resnet8x4", 240)
    away = tables.nearest_to_paper(frame, same)
    assert list(away.index) == ["near", "far"]
    assert away.to_numpy().tolist() == [[-0.08, 1.0], [-2.0, -7.21]]  # from 51.08 and 27.21
    assert tables.nearest_to_paper(frame, same._replace(epochs=30)).empty
    grouped = tables.nearest_to_paper(frame, same._replace(teacher="vgg13", student="vgg8"))
    assert grouped["all"].tolist() == [1.42, 3.34]  # from 47.66, n = 3 in the table of groups


def test_the_share_fitted_without_labels_beside_the_others():
    fitted = runs({"kd": [55.0, 58.0], "balanced_softmax": [54.0, 55.0]}).assign(
        label=["KD", "KD", "BS", "BS"], tau=[1.2, 1.4, 0.9, 0.9]
    )
    assert tables.fitted_shares(pd.DataFrame(columns=FITTED), adjusted()).empty
    curves = adjusted()
    found = tables.fitted_shares(fitted, curves)
    assert list(found.index) == ["KD", "BS"]
    # As trained it stands at tau = 1.
    balanced = found.loc["BS", ["minus as trained", "minus τ = 1"]].tolist()
    assert balanced == ["−0.5 [−6.9, 5.9]"] * 2
    row = found.loc["KD"]
    assert row["τ"] == "1.30"
    # 55 − 50, 58 − 52; t(0.975, 1) = 12.7062 on half a point of standard error.
    assert row["minus as trained"] == "+5.5 [−0.9, 11.9]"
    # 55 − 54, 58 − 56: at tau = 1, where its curve is highest, too.
    assert row["minus τ = 1"] == "+1.5 [−4.9, 7.9]"
    assert row["minus best τ"] == "+1.5 [−4.9, 7.9], τ 1"
    assert row["all"] == "56.5 ± 19.1 (2)"
