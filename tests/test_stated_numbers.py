"""Each row of numbers in README.md and outputs/FINDINGS.md is worked out again from the records.

`python tests/test_stated_numbers.py` prints the rows, to be pasted where they changed.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ltkd.report import claims, tables
from ltkd.study import network_label

ROOT = Path(__file__).parent.parent
BIASED, SHARP = "LTKD, rebalance 0", "LTKD, temperature 2"
DKD, DIST = "DKD, beta 2", "DIST, temperature 2"
SETTINGS = "04_ablations.settings-*.csv"
STEPS = (
    ("cross_rebalanced", "cross_biased"), ("within_only", "baseline"),
    ("cross_and_within", "within_only"), ("cross_and_within", "cross_rebalanced"),
    ("cross_and_within", BIASED), (BIASED, "within_only"), (BIASED, "KD, weights 1 and 1"),
    ("LTKD", "DKD"), ("LTKD", "ReviewKD"), ("LTKD", "DIST"), ("LTKD", "CAT-KD"),
    (SHARP, "LTKD"), (SHARP, "KD, adjusted teacher, temperature 2"),
    (SHARP, "KD, adjusted teacher"), (SHARP, "Balanced softmax"),
    ("KD, weights 1 and 1, prior removed", SHARP), (DKD, "DKD"), (DIST, "DIST"), (SHARP, DKD),
    (SHARP, DIST), ("KD, weights 1 and 1, prior removed", f"{DKD}, prior removed"),
    ("KD, weights 1 and 1, prior removed", f"{DIST}, prior removed"),
)  # fmt: skip


def frames(part="distillation", study="cifar100_lt_short", curves="03_distillation.frontier-*.csv"):
    folder = ROOT / "outputs" / study
    runs = pd.read_csv(folder / "runs.csv", keep_default_na=False, na_values={"n_groups": [""]})
    (path,) = folder.glob(f"reports/{curves}")
    return runs[runs["part"] == part], pd.read_csv(path)


def accuracy_rows():
    (teacher, _), (runs, adjusted) = frames("teachers"), frames()
    after = adjusted[adjusted["tau"] == 1]
    cells = [f"{teacher[m].item():.1f}" for m in tables.METRICS]
    one = after[after["method"] == "teacher"]
    cells += [f"{one[m].item():.1f}" for m in ("all", "head", "tail")]
    yield f"| teacher VGG13 (one) | {' | '.join(cells)} |"
    for method, part in runs.groupby("method", sort=False):
        cells = [tables.t_interval(part[m]).plus_minus() for m in tables.METRICS]
        one = after[after["method"] == method]
        if one.empty:
            cells += ["network not kept", "", ""]
        elif one["as_trained"].any():
            cells += ["as trained", "", ""]
        else:
            cells += [tables.t_interval(one[m]).plus_minus() for m in ("all", "head", "tail")]
        text = " | ".join(cells).replace(" (3)", "")
        yield f"| {tables.marked(part['label'].iloc[0])} | {text} |".replace("  ", " ")


def difference_rows():
    runs, adjusted = frames()
    first = (("", "ltkd", "kd"),)
    for asked in (first, claims.QUESTIONS, claims.AFTER):
        table = claims.questions(tables.joined(runs, adjusted), asked)
        for name, row in table[table["n"] > 0].iterrows():
            yield f"| {name} | {row['all']} | {row['head']} | {row['tail']} |"


def gap_cells(part):
    """One curve's differences at an equal head accuracy."""
    found = {row["metric"]: tables.Interval.of(row) for row in part.to_dict("records")}
    return " | ".join(found[m].difference() for m in ("all", "medium", "tail"))


def height_rows():
    gaps = tables.at_equal_head(frames()[1])
    for _, part in gaps.groupby("method", sort=False):
        yield f"| {tables.marked(part['label'].iloc[0])} | {gap_cells(part)} |"


def teacher_rows():
    """The teachers of the paper's schedule: of them there are records and no pages yet."""
    for path in sorted((ROOT / "outputs/cifar100_lt/runs").glob("*/record.json")):
        values = json.loads(path.read_text())
        if values["spec"]["method"] == "teacher":
            assert values["spec"]["epochs"] == 240
            each = 100 * np.array(values["history"][-1]["correct"]) / values["data"]["test_counts"]
            parts = [each, each[:33], each[33:67], each[67:]]
            text = " | ".join(f"{part.mean():.2f}" for part in parts)
            yield f"| {network_label(values['spec']['student'])} | {text} |"


def chosen_rows():
    runs, adjusted = frames("sweep", "cifar100_lt_tune", SETTINGS)
    for label, row in tables.chosen(runs, adjusted).iterrows():
        yield f"| {label} | {' | '.join(map(str, row))} |"


def taken_off_rows():
    reports = ROOT / "outputs/cifar100_lt_short/reports"
    yield "| KD, adjusted teacher | 1 | 0 | 0 |"
    taken = pd.read_csv(reports / "01_decomposition.taken-off-vgg13.csv")
    for t, part in taken.groupby("temperature"):
        for by, row in tables.correction_strengths(part).iterrows():
            if by.startswith("LTKD"):
                name = by.replace("\u00a0", " ")
                yield f"| {name}, T = {t:g} | {' | '.join(f'{value:.2f}' for value in row)} |"


def part_rows():
    """The ablation's cells, the group counts, and the settings that the tuning study chose."""
    for part, by in (("ablations", "variant"), ("group_count", "n_groups"), ("sweep", "variant")):
        for name, row in tables.accuracies(frames(part)[0], by).iterrows():
            text = " | ".join(row[list(tables.METRICS)]).replace(" (3)", "")
            yield f"| {name} | {text} |"


def of_three_seeds():
    """The curves of the thirty-epoch study's settings, where no seed's network is missing."""
    adjusted = frames("sweep", curves=SETTINGS)[1]
    return adjusted[adjusted.groupby("variant")["seed"].transform("nunique") == 3]


def setting_removed_rows():
    for name, row in tables.after_training(of_three_seeds(), "variant").iterrows():
        yield f"| {name} | {' | '.join(row)} |".replace(" (3)", "")


def setting_height_rows():
    """The same curves read at the head accuracy of KD with weights 1 and 1, prior removed."""
    own = of_three_seeds()
    both = pd.concat([frames()[1], own.assign(method=own["variant"])])
    gaps = tables.at_equal_head(both)
    for name, part in gaps[gaps["method"].isin(own["variant"])].groupby("method", sort=False):
        yield f"| {name} | {gap_cells(part)} |"


def step_rows():
    """Differences between cells of the ablation, settings and methods, paired by seed."""
    runs, adjusted = frames()
    whole, removed = tables.joined(runs, adjusted), tables.prior_removed(of_three_seeds())
    cells = pd.concat([frames(part)[0] for part in ("ablations", "sweep")])
    runs = pd.concat([
        cells.assign(name=cells["variant"]), whole.assign(name=whole["label"]),
        removed.assign(name=removed["variant"] + tables.REMOVED),
    ])  # fmt: skip
    for better, worse in STEPS:
        gaps = tables.paired(runs, worse, "name")
        found = [tables.interval_of(gaps, name=better, metric=m).difference()
                 for m in ("all", "head", "tail")]  # fmt: skip
        names = (tables.LABELS.get(name, name) for name in (better, worse))
        yield f"| {' − '.join(names)} | {' | '.join(found)} |"


FEWER = {teacher_rows: 2, setting_removed_rows: 4, setting_height_rows: 4}


@pytest.mark.parametrize(
    ("file", "rows"),
    [("README.md", accuracy_rows), ("outputs/FINDINGS.md", accuracy_rows),
     ("outputs/FINDINGS.md", difference_rows), ("outputs/FINDINGS.md", height_rows),
     ("outputs/FINDINGS.md", chosen_rows), ("outputs/FINDINGS.md", taken_off_rows),
     ("outputs/FINDINGS.md", part_rows), ("outputs/FINDINGS.md", step_rows),
     ("outputs/FINDINGS.md", setting_removed_rows), ("outputs/FINDINGS.md", setting_height_rows),
     ("outputs/FINDINGS.md", teacher_rows)],
)  # fmt: skip
def test_every_stated_row_is_that_of_the_records(file, rows):
    text = (ROOT / file).read_text()
    found = list(rows())
    assert len(found) >= FEWER.get(rows, 6)
    for row in found:
        assert "—" not in row
        assert row in text


if __name__ == "__main__":
    for rows in (
        accuracy_rows, difference_rows, height_rows, chosen_rows, taken_off_rows, part_rows,
        step_rows, setting_removed_rows, setting_height_rows, teacher_rows,
    ):  # fmt: skip
        print(*rows(), "", sep="\n")
