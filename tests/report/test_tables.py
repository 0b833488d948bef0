"""The tables against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from rows import runs

from ltkd.report import intervals, tables
from ltkd.report.paper import Setting


class Study:
    """The part of a study that the tables read."""

    def __init__(self, frame: pd.DataFrame, schedule: str = "steps") -> None:
        self.frame, self.schedule = frame, schedule

    def results(self, part: str) -> pd.DataFrame:
        return self.frame


def test_a_note_says_which_images_were_counted():
    frame = runs({"kd": [1.0, 2.0], "ltkd": [1.0, 2.0]}, dataset="cifar100")
    assert "on the balanced test set, last" in tables.note(frame).data
    assert "on the folder's test images" in tables.note(frame.assign(dataset="folder")).data
    assert (
        "on 25 training images a class, held out, last"
        in tables.note(frame.assign(holdout=25)).data
    )


def test_paired_differences_use_the_seeds_that_both_have():
    frame = runs({"kd": [50.0, 60.0, 70.0], "ltkd": [52.0, 63.0]})
    gap = tables.interval_of(tables.paired(frame, "kd"), method="ltkd", metric="tail")
    # Differences 2 and 3: mean 2.5, half-width t(0.975, 1) * 0.7071 / sqrt(2) = 12.7062 * 0.5.
    assert (gap.mean, gap.n) == (2.5, 2)
    assert gap.high - gap.mean == pytest.approx(6.3531, abs=1e-4)
    # Pairing takes the seeds' common variation out: the unpaired interval is far wider.
    assert intervals.t_interval(frame.query("method == 'kd'")["tail"]).high > 80


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


def test_cells_without_a_seed_in_common_make_no_steps():
    frame = pd.concat(
        [runs({"kd": [50.0]}), runs({"kd_ce1": [51.0, 52.0], "ltkd": [60.0]}).iloc[1:]]
    )
    frame.loc[frame["method"] == "ltkd", "seed"] = 1
    assert tables.steps(frame, ["kd", "kd_ce1", "ltkd"], "tail").empty


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
