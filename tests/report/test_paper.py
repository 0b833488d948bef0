"""The paper's numbers: how many, a few known cells, and what recomputes from them."""

import re
from pathlib import Path

import numpy as np
import pytest

from ltkd import Study
from ltkd.params import network_label
from ltkd.report import paper
from ltkd.report.paper import Setting


@pytest.mark.parametrize(
    ("table", "cells", "trust"),
    [
        ("main", 96, "primary"), ("ablations", 60, "primary; data set and γ inferred"),
        ("group_count", 32, "repaired"), ("secondary", 13, "secondary"),
    ],
)  # fmt: skip
def test_cells_and_trust(table, cells, trust):
    rows = paper.reported(table)
    assert len(rows) == cells
    assert set(rows["trust"]) == {trust}
    assert rows["top1"].between(10, 75).all()
    assert not rows.duplicated(["dataset", "gamma", "teacher", "student", "cell", "metric"]).any()


def test_known_cells():
    assert paper.reported("secondary", cell="ltkd", student="resnet8x4")["top1"].tolist() == [
        27.21,
        51.08,
    ]
    assert paper.reported("group_count", cell="3", student="resnet8x4")["top1"].item() == 51.08
    where = {"cell": "catkd", "student": "resnet18_imagenet", "gamma": 20.0, "metric": "all"}
    assert paper.reported("main", **where)["top1"].item() == 59.67


def test_delta_row_of_the_main_table_recomputes():
    # The slides' last row: LTKD minus ReviewKD, the strongest of the others by their choice.
    printed = [1.06, 0.27, 1.75, 0.57, 2.40, 0.65, 1.58, 0.38, 1.34, 0.21, 3.20, 0.38]
    ltkd, review = (
        paper.reported("main", cell=cell)["top1"].to_numpy() for cell in ("ltkd", "reviewkd")
    )
    np.testing.assert_allclose(ltkd - review, printed, atol=1e-9)


def test_delta_row_of_the_ablation_recomputes():
    printed = [2.21, 0.78, 0.67, -0.01, 1.71, 0.40, 0.55, 0.01, 0.59, 0.38, 2.21, 0.60]
    found = [
        paper.reported("ablations", cell=f"cross_{c}")["top1"].to_numpy()
        for c in ("rebalanced", "biased")
    ]
    np.testing.assert_allclose(found[0] - found[1], printed, atol=1e-9)


def test_what_the_ablation_page_says_of_the_paper():
    cells = paper.reported("ablations").pivot_table(
        index=["teacher", "student", "metric"], columns="cell", values="top1"
    )
    gain = cells.sub(cells["baseline"], axis=0)
    overall = gain.xs("all", level="metric")
    assert (overall[["cross_biased", "cross_rebalanced"]] < 0).all(axis=None)
    assert (gain["cross_and_within"] > gain["cross_rebalanced"] + gain["within_only"]).all()


def test_group_counts_repair_the_printed_table():
    rows = paper.PRINTED_GROUP_COUNTS
    for student, expected in (
        ("resnet8x4", rows["R32x4-R8x4"][:8]), ("vgg8", rows["R32x4-R8x4"][8:]),
        ("shufflenetv1", rows["WRN402-SV1"][:8]), ("mobilenetv2", rows["WRN402-SV1"][8:]),
    ):  # fmt: skip
        assert paper.reported("group_count", student=student)["top1"].tolist() == expected
    assert rows["R32x4-R8x4"][8:12] == rows["VGG13-VGG8"][:4]
    assert rows["R32x4-R8x4"][12:] != rows["VGG13-VGG8"][4:8]
    assert rows["VGG13-VGG8"][8:] == rows["WRN402-SV1"][:8]


def test_an_unknown_cell_names_what_there_is():
    with pytest.raises(ValueError, match=r"'ltdk'.*reviewkd"):
        paper.reported("main", cell="ltdk")
    with pytest.raises(ValueError, match=r"'appendix'.*group_count"):
        paper.reported("appendix")
    with pytest.raises(ValueError, match="no such column; allowed: table"):
        paper.reported("main", methods="ltkd")


def test_comparable_only_with_everything_the_same():
    same = Setting("cifar100", 100.0, "vgg13", "vgg8", 240)
    assert paper.comparable(same, "group_count")
    assert not paper.comparable(same, "secondary")  # has no such pair
    assert paper.comparable(same, "three_groups")
    assert paper.comparable(same._replace(gamma=10.0), "ablations")
    for other in (
        {"epochs": 60},
        {"gamma": 10.0},
        {"dataset": "digits"},
        {"student": "vgg13"},
        {"schedule": "one_cycle"},
    ):
        for table in ("group_count", "secondary", "three_groups"):
            assert not paper.comparable(same._replace(**other), table)
    assert Setting("imagenet", 5.0, "a", "b", 100).table == "main"
    assert Setting("cifar100", 100.0, "resnet32x4", "resnet8x4", 240).table == "secondary"
    assert same._replace(epochs=30).table == "secondary"
    assert same.table == "three_groups"
    assert paper.reported("three_groups", student="vgg8")["top1"].tolist() == [47.66]


def test_imagenets_networks_are_the_papers_by_its_names():
    pairs = ["resnet34_imagenet-resnet18_imagenet", "resnet50_imagenet-mobilenetv1"]
    study = Study(name="x", dataset="imagenet", pairs=pairs, schedule="steps")
    assert study.schedule == "steps"
    for pair in study.pairs:
        for gamma in (5.0, 10.0, 20.0):
            setting = Setting("imagenet", gamma, *pair, 100, study.schedule)
            assert paper.comparable(setting, "main")
            heading, rows = paper.beside(setting, "main")
            assert f"γ = {gamma:g}, {pair.label}, 100 epochs; primary): the same" in heading
            assert len(rows) == 16  # eight rows, tail and overall
    assert [pair.label for pair in study.pairs] == ["ResNet34-ResNet18", "ResNet50-MobileNetV1"]
    small = Study(name="x", dataset="imagenet", pairs=pairs, schedule="steps", images={"size": 64})
    assert not paper.comparable(setting._replace(schedule=small.schedule), "main")
    assert setting._replace(schedule=small.schedule).title.endswith("(steps, 64 pixels)")
    for own in ({"groups": 10}, {"alpha": 7.0}, {"temperature": 1.0}, {"lr": 0.1, "batch": 256},
                {"method_args": {"kd": {"ce_weight": 0.5}}}):  # fmt: skip
        changed = Study(name="x", dataset="imagenet", pairs=pairs, schedule="steps", **own)
        assert changed.schedule == "steps, own values"
    for own, name in (({"lr": 0.1, "batch": 256}, "one_cycle"),
                      ({"alpha": 7.0}, "one_cycle, own values")):  # fmt: skip
        assert Study(name="x", schedule="one_cycle", **own).schedule == name


def test_beside_takes_the_closest_setting():
    heading, rows = paper.beside(Setting("digits", 20.0, "vgg13", "vgg8", 40), "group_count")
    assert set(rows["student"]) == {"vgg8"}
    assert "another setting" in heading
    assert "repaired" in heading
    assert "Digits-LT" in heading
    _, rows = paper.beside(Setting("digits", 20.0, "resnet20", "resnet8", 40), "main")
    assert len(rows[["gamma", "student"]].drop_duplicates()) == 1


def test_labels():
    names = ("resnet32x4", "vgg8", "wrn_40_2", "mobilenetv2", "shufflenetv1")
    shown = ["ResNet32x4", "VGG8", "WRN-40-2", "MobileNetV2", "ShuffleNetV1"]
    assert [network_label(name) for name in names] == shown
    title = Setting("cifar100", 100.0, "vgg13", "vgg8", 240).title
    assert title == "CIFAR-100-LT, γ = 100, VGG13-VGG8, 240 epochs"


def test_the_readme_describes_each_file_and_trusts_it_as_the_library_does():
    folder = Path(paper.__file__).parents[1] / "paper"
    readme = (folder / "README.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)\.csv` \|[^|]*\| (\w+)[;:]", readme, re.MULTILINE))
    assert set(told) == {path.stem for path in folder.glob("*.csv")}
    trust = {file: said.split(";")[0] for file, *_, said in paper._TABLES.values()}
    assert told == trust
