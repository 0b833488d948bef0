"""Rows of numbers in README.md and outputs/*.md are worked out again from records and pages.

`python tests/test_stated_numbers.py` prints the rows, to be pasted where they changed.
"""

import html
import json
import re
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltkd.data import load
from ltkd.methods import METHODS
from ltkd.params import network_label
from ltkd.report import bias, claims, curves, paper, tables
from ltkd.report.intervals import METRICS, Interval, t_interval

ROOT = Path(__file__).parent.parent
FIRST = "cifar100_lt_short"
BIASED, SHARP = "LTKD, rebalance 0", "LTKD, temperature 2"
ADJUSTED = "KD, adjusted teacher, temperature 2"
DKD, DIST, CATKD = "DKD, beta 2", "DIST, temperature 2", "CAT-KD, beta 1.5"
REVIEWKD = "ReviewKD, warmup 0"
SETTINGS = "04_ablations.settings-*.csv"
STEPS = (
    ("cross_rebalanced", "cross_biased"), ("within_only", "baseline"),
    ("cross_and_within", "within_only"), ("cross_and_within", "cross_rebalanced"),
    ("cross_and_within", BIASED), (BIASED, "within_only"), (BIASED, "KD, weights 1 and 1"),
    ("LTKD", "DKD"), ("LTKD", "ReviewKD"), ("LTKD", "DIST"), ("LTKD", "CAT-KD"),
    (SHARP, "LTKD"), (SHARP, ADJUSTED),
    (SHARP, "KD, adjusted teacher"), (SHARP, "Balanced softmax"),
    ("KD, weights 1 and 1, prior removed", SHARP), (DKD, "DKD"), (DIST, "DIST"), (SHARP, DKD),
    (SHARP, DIST), ("KD, weights 1 and 1, prior removed", f"{DKD}, prior removed"),
    ("KD, weights 1 and 1, prior removed", f"{DIST}, prior removed"),
    (CATKD, "CAT-KD"), (SHARP, CATKD),
    ("KD, weights 1 and 1, prior removed", f"{CATKD}, prior removed"),
    (SHARP, "ReviewKD"), ("ReviewKD, prior removed", "KD, weights 1 and 1, prior removed"),
    ("ReviewKD, prior removed", SHARP),
    ("ReviewKD, prior removed", "Bal. softmax + KD, adjusted teacher"),
    (REVIEWKD, "ReviewKD"), (SHARP, REVIEWKD),
    (f"{REVIEWKD}, prior removed", "KD, weights 1 and 1, prior removed"),
    (f"{REVIEWKD}, prior removed", SHARP),
    (f"{REVIEWKD}, prior removed", "Bal. softmax + KD, adjusted teacher"),
)  # fmt: skip


def listed(study):
    """runs.csv of a study."""
    path = ROOT / "outputs" / study / "runs.csv"
    return pd.read_csv(path, keep_default_na=False, na_values={"n_groups": [""]})


def frames(part="distillation", study=FIRST, table="07_prior_removed.frontier-*.csv"):
    runs = listed(study)
    (path,) = (ROOT / "outputs" / study).glob(f"reports/{table}")
    return runs[runs["part"] == part], pd.read_csv(path)


def accuracy_rows():
    (teacher, _), (runs, adjusted) = frames("teachers"), frames()
    after = adjusted[adjusted["tau"] == 1]
    cells = [f"{teacher[m].item():.1f}" for m in METRICS]
    one = after[after["method"] == "teacher"]
    cells += [f"{one[m].item():.1f}" for m in ("all", "head", "tail")]
    yield f"| teacher VGG13 (one) | {' | '.join(cells)} |"
    for method, part in runs.groupby("method", sort=False):
        cells = [t_interval(part[m]).plus_minus() for m in METRICS]
        one = after[after["method"] == method]
        if one.empty:
            cells += ["network not kept", "", ""]
        elif one["as_trained"].any():
            cells += ["as trained", "", ""]
        else:
            cells += [t_interval(one[m]).plus_minus() for m in ("all", "head", "tail")]
        text = " | ".join(cells).replace(" (3)", "")
        yield f"| {tables.marked(part['label'].iloc[0])} | {text} |".replace("  ", " ")


def difference_rows():
    runs, adjusted = frames()
    first = (("", "kd", "student"), ("", "kd_ce1", "student"), ("", "ltkd", "kd"),
             ("", "ltkd_removed", "ltkd"), ("", "student_removed", "ltkd"),
             ("", "kd_ce1_removed", "kd_removed"))  # fmt: skip
    for asked in (first, claims.QUESTIONS, claims.AFTER):
        table = claims.questions(curves.joined(runs, adjusted), asked)
        for name, row in table[table["n"] > 0].iterrows():
            yield f"| {name} | {row['all']} | {row['head']} | {row['tail']} |"


def gap_cells(part):
    """One curve's differences at an equal head accuracy."""
    found = {row["metric"]: Interval.of(row) for row in part.to_dict("records")}
    return " | ".join(found[m].difference() for m in ("all", "medium", "tail"))


def height_rows():
    gaps = curves.at_equal_head(frames()[1])
    for _, part in gaps.groupby("method", sort=False):
        yield f"| {tables.marked(part['label'].iloc[0])} | {gap_cells(part)} |"


def accuracies(correct, total):
    each = 100 * np.array(correct) / total
    parts = {"head": each[:33], "medium": each[33:67], "tail": each[67:]}
    overall = {"all": 100 * np.sum(correct) / total.sum()}
    return overall | {name: part.mean() for name, part in parts.items()}


RESNET, VGG = ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8")
FULL = {  # pair -> its methods at the paper's schedule, in a table's order
    RESNET: ("kd", "kd_ce1", "ltkd", "balanced_softmax"),
    VGG: ("student", "kd", "kd_ce1", "ltkd", "kd_adjusted", "balanced_softmax"),
}


def full(pair=RESNET):
    """The records of one pair at the paper's schedule."""
    return recorded("cifar100_lt", pair, 240)


def recorded(study, pair, epochs):
    """All records of a pair, its teacher's too, whether or not all seeds are there, or on a page: a
    frame of the runs, one of their curves. At the chosen T = 2 a method is one of its own, and so
    is a cell of the ablation."""
    runs, adjusted = [], []
    for path in sorted((ROOT / "outputs" / study / "runs").glob("*/record.json")):
        values = json.loads(path.read_text())
        spec, total = values["spec"], np.array(values["data"]["test_counts"])
        assert spec["epochs"] == epochs
        if spec["student"] not in pair:
            continue
        about = {"run": path.parent.name, "network": network_label(spec["student"]), "variant": ""}
        about |= {key: spec[key] for key in ("method", "seed")}
        about |= {key: getattr(METHODS[spec["method"]], key) for key in ("label", "ours")}
        chosen = {"ltkd": SHARP, "kd_adjusted": ADJUSTED}.get(spec["method"])
        if chosen and spec["method_args"]["temperature"] == 2:
            about |= {"method": chosen, "label": chosen}
        args = spec["method_args"]
        if spec["method"] == "ltkd" and 0 in (args["alpha"], args["beta"]):
            cell = ("within_only" if args["beta"] else
                    "cross_rebalanced" if args["rebalance"] else "cross_biased")  # fmt: skip
            about |= {"method": cell, "label": tables.LABELS[cell]}
        runs.append(about | accuracies(values["history"][-1]["correct"], total))
        if (curve := path.with_name("adjusted.json")).exists():
            kept = json.loads(curve.read_text())
            own = float(METHODS[spec["method"]].balanced)
            for tau, correct in zip(kept["tau"], kept["correct"], strict=True):
                where = {"tau": tau, "as_trained": tau == own}
                adjusted.append(about | where | accuracies(correct, total))
    return pd.DataFrame(runs), pd.DataFrame(adjusted)


def teacher_rows():
    for pair in FULL:
        runs = full(pair)[0]
        for _, row in runs[runs["method"] == "teacher"].iterrows():
            yield f"| {row['network']} | {' | '.join(f'{row[m]:.2f}' for m in METRICS)} |"


FULL_STEPS = {
    RESNET: (
        ("ltkd", "kd"), ("kd_ce1", "kd"), ("ltkd", "kd_ce1"), ("ltkd", "balanced_softmax"),
        ("kd_ce1_removed", "kd_ce1"), ("kd_ce1_removed", "ltkd"), ("ltkd_removed", "ltkd"),
        ("ltkd_removed", "kd_ce1_removed"), ("kd_ce1_removed", "balanced_softmax"),
        ("kd_ce1_removed", "kd_removed")),
    VGG: (
        ("kd_ce1", "kd"), ("kd_removed", "kd"), ("kd_ce1_removed", "kd_removed"),
        ("kd_ce1_removed", "kd_ce1"), ("kd_ce1_removed", "ltkd"),
        ("kd_ce1_removed", "kd_adjusted"), ("ltkd_removed", "ltkd"),
        ("kd_adjusted_removed", "kd_adjusted"), ("ltkd_removed", "kd_ce1_removed"),
        ("ltkd_removed", "kd_adjusted_removed"), ("kd_adjusted_removed", "kd_ce1_removed"),
        ("kd_ce1_removed", "balanced_softmax"), ("kd", "student"),
        ("student_removed", "student"), ("kd_ce1_removed", "student_removed"),
        ("student_removed", "ltkd"), ("student_removed", "balanced_softmax")),
}  # fmt: skip


def full_accuracy_rows(pair=RESNET):
    """Beside the paper's cells, where our sources have them; with fewer seeds, how many."""
    runs, adjusted = full(pair)
    reported = pd.concat(
        [paper.reported(table, gamma=100.0) for table in ("group_count", "secondary")]
    )
    own = reported["student"] == pair[1]
    reported = reported[own].replace({"cell": {"3": "ltkd"}}).drop_duplicates(["cell", "metric"])
    for method in ("teacher", *FULL[pair]):
        part = runs[runs["method"] == method]
        one = adjusted[(adjusted["method"] == method) & (adjusted["tau"] == 1)]
        cells = [t_interval(part[m]).plus_minus() for m in METRICS]
        for metric in ("all", "tail"):
            found = reported[(reported["cell"] == method) & (reported["metric"] == metric)]
            mean = part[metric].mean()
            cells.append("".join(f"{v:.2f} ({mean - v:+.1f})" for v in found["top1"]))
        if one["as_trained"].any():
            cells += ["as trained", "", "", ""]
        else:
            cells += [t_interval(one[m]).plus_minus() for m in METRICS]
        text = " | ".join(cells).replace(" (3)", "").replace("(-", "(−")
        label, network = part[["label", "network"]].iloc[0]
        name = f"Teacher {network}" if method == "teacher" else label
        yield f"| {tables.marked(name)} | {text} |".replace("  ", " ")


def students(runs, adjusted):
    return curves.joined(runs[runs["method"] != "teacher"], adjusted)


def step(whole, better, worse, by="method", metrics=METRICS):
    """A difference's name, its cells, and how many seeds stand behind them."""
    gaps = tables.paired(whole, worse, by)
    found = [tables.interval_of(gaps, metric=m, **{by: better}) for m in metrics]
    names = (tables.marked(tables.LABELS.get(name, name)) for name in (better, worse))
    return " − ".join(names), " | ".join(one.difference() for one in found), found[0].n


def full_difference_rows(pair=RESNET):
    whole = students(*full(pair))
    for better, worse in FULL_STEPS[pair]:
        name, cells, n = step(whole, better, worse)
        yield f"| {name} | {cells} | {n} |"


RIVALS = (
    "kd", "kd_removed", "kd_ce1_removed", "student_removed", "kd_adjusted", "balanced_softmax",
    "ltkd_held_out", "ltkd_removed",
)  # fmt: skip
ANSWERS = {*RIVALS} - {"ltkd_removed"}


def over_ltkd():
    """Each method's row name, and what it has more than LTKD as it stands: a function of the metric
    for each pair and schedule."""
    columns, tau = [], held_out_tau()["ltkd"]
    for runs, adjusted in (frames(), full(VGG), full()):
        own = adjusted[(adjusted["method"] == "ltkd") & (adjusted["tau"] == tau)]
        whole = pd.concat([students(runs, adjusted), own.assign(method="ltkd_held_out")])
        columns.append(tables.paired(whole, "ltkd"))
    names = tables.LABELS | {"ltkd_held_out": f"LTKD, prior removed in part, τ = {tau:g}"}
    for method in RIVALS:
        found = [partial(tables.interval_of, gaps, method=method) for gaps in columns]
        yield method, names[method] + (" (ours)" if method != "kd" else ""), found


def of_few(one):
    """A difference, and how many seeds stand behind it, if fewer than three."""
    return one.difference() + f" ({one.n})" * (one.n < 3) if one.n else "not run"


def rival_rows():
    for _, name, columns in over_ltkd():
        for metric in ("all", "head", "tail"):
            cells = (of_few(of(metric=metric)) for of in columns)
            yield f"|{f' {name}' if metric == 'all' else ''} | {metric} | {' | '.join(cells)} |"


def answer_rows():
    """The same shorter: of head and tail the means, n.r. where the interval holds zero."""
    for method, name, columns in over_ltkd():
        if method in ANSWERS:
            cells = []
            for of in columns:
                whole, *parts = (of(metric=metric) for metric in ("all", "head", "tail"))
                told = [one.difference().split(" [")[0] for one in parts]
                told = [f"{mean} n.r." if one.low <= 0 <= one.high else mean
                        for one, mean in zip(parts, told, strict=True)]  # fmt: skip
                cells.append(of_few(whole) + f"<br>head {told[0]}, tail {told[1]}" * (whole.n > 0))
            yield f"| {name} | {' | '.join(cells)} |"


def vgg_accuracy_rows():
    yield from full_accuracy_rows(VGG)


def vgg_removed_rows():
    yield from full_difference_rows(VGG)


def vgg_difference_rows():
    """Over seeds, and over the test images, with the teacher one and the same for every seed."""
    runs, data = full(VGG)[0], load("cifar100", 100.0)
    seeds = runs.loc[runs["method"] == "ltkd", "seed"]
    teacher = runs[runs["method"] == "teacher"]
    students = runs[runs["method"] != "teacher"]
    runs = pd.concat([students, *(teacher.assign(seed=seed) for seed in seeds)])
    folder = ROOT / "outputs/cifar100_lt/runs"
    told = {run: np.load(folder / run / "predictions.npy", allow_pickle=False)
            for run in runs["run"]}  # fmt: skip
    for other in (*(method for method in FULL[VGG] if method != "ltkd"), "teacher"):
        found = tables.both_intervals(runs, told, data, "ltkd", other).loc[list(METRICS)]
        n = (runs["method"] == other).sum()
        than = tables.marked(METHODS[other].label) + (f" ({n} seeds)" if n < len(seeds) else "")
        for over in ("over seeds (t, paired)", "over test images (bootstrap)"):
            name = f"LTKD − {than}, {over.split(' (')[0]}"
            yield f"| {name} | {' | '.join(found[over])} |"


def page_tables(study, notebook, heading):
    """The tables with a column of that heading in an executed page: the text shown before each, and
    its rows' cells."""
    page = nbformat.read(ROOT / f"outputs/{study}/reports/{notebook}.ipynb", as_version=4)
    shown = [out.get("data", {}) for cell in page.cells for out in cell.get("outputs", [])]
    before = ""
    for data in shown:
        table = data.get("text/html", "")
        if f"<th>{heading}</th>" in table:
            yield before, [[html.unescape(re.sub("<.*?>", "", cell)).strip()
                            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
                           for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]  # fmt: skip
        before = data.get("text/markdown", before)


def claim_rows():
    """The tests of the paper's claims, as the executed pages of three studies have them: a column
    for each pair of each."""
    columns = []
    for study, pairs in (("cifar100_lt", 2), (SECOND, 1), (FIRST, 1)):
        found = [rows for _, rows in page_tables(study, "06_summary", "comparison")]
        assert len(found) == pairs
        columns += found
    told = {}
    for column, table in enumerate(columns):
        for name, claim, result, points, n in table:
            if result in ("confirmed", "contradicted", "not resolved"):
                assert n in {"1": ("100 batches", "10000 images")}.get(
                    claim, ("3 seeds", "2 seeds")
                )
                points += " (2)" * (n == "2 seeds")
                own = told.setdefault((int(claim), name), ["not run"] * len(columns))
                own[column] = points if result == "confirmed" else f"{points}, {result}"
    shorter = {}  # what only thirty epochs have, its tail and overall side by side
    for (claim, name), cells in sorted(told.items(), key=lambda one: one[0][0]):
        if set(cells[:-1]) == {"not run"}:
            test, metric = name.rsplit(", ", 1)
            shorter.setdefault((claim, test), {})[metric] = cells[-1]
        else:
            yield f"| {claim} | {name} | {' | '.join(cells)} |"
    for (claim, test), found in shorter.items():
        yield f"| {claim} | {test} | {found.get('tail', 'not asked')} | {found['all']} |"


TENTH = "cifar100_lt_gamma10"
SECOND = "cifar100_lt_split1"  # the same as at thirty epochs, of another draw of training images
SPLIT_STEPS = (
    ("LTKD", "KD, weights 1 and 1"), ("LTKD", "Balanced softmax"),
    ("KD, weights 1 and 1, prior removed", "LTKD"),
    ("KD, weights 1 and 1, prior removed", "Balanced softmax"),
    ("LTKD, prior removed", "KD, weights 1 and 1, prior removed"),
    (SHARP, "LTKD"), (SHARP, "Balanced softmax"), ("KD, weights 1 and 1, prior removed", SHARP),
    ("LTKD", "KD"), ("KD, weights 1 and 1", "KD"), (SHARP, ADJUSTED),
    ("KD, weights 1 and 1, prior removed", ADJUSTED),
)  # fmt: skip


SPLITS = {"first": FIRST, "second": SECOND, "third": "cifar100_lt_split2"}


def both_splits():
    return {split: by_name(SPLITS[split]) for split in ("first", "second")}


def split_accuracy_rows():
    splits = both_splits()
    for method in ("KD", "KD, weights 1 and 1", "LTKD", SHARP, ADJUSTED, "Balanced softmax"):
        for name in (method, f"{method}, prior removed"):
            for split, runs in splits.items():
                part = runs[runs["name"] == name]
                if len(part):  # balanced softmax is as trained with the prior removed
                    cells = [t_interval(part[m]).plus_minus() for m in METRICS]
                    text = " | ".join(cells).replace(" (3)", "")
                    yield f"| {tables.marked(name)} | {split} | {text} |"


def split_teacher_rows():
    """Each split's one teacher, as trained and with the prior removed."""
    for split, study in SPLITS.items():
        adjusted = frames("teachers", study)[1]
        own = adjusted[(adjusted["method"] == "teacher") & adjusted["tau"].isin([0, 1])]
        for _, row in own.sort_values("tau").iterrows():
            name = "teacher VGG13" + (tables.REMOVED + " (ours)") * int(row["tau"])
            yield f"| {name} | {split} | {' | '.join(f'{row[m]:.1f}' for m in METRICS)} |"


def over_splits_rows():
    """On the third split, and over the three: of each split its seeds' mean difference."""
    third = students(*recorded(SPLITS["third"], VGG, 30))
    splits = [*both_splits().values(), third.assign(name=third["label"])]
    for better, worse in SPLIT_STEPS:
        if {better, worse} <= set(splits[-1]["name"]):
            name, cells, n = step(splits[-1], better, worse, "name")
            yield f"| {name} | third | {cells} | {n} |"
            gaps = [tables.paired(runs, worse, "name") for runs in splits]
            over = [t_interval(tables.interval_of(gap, name=better, metric=m).mean
                                      for gap in gaps) for m in METRICS]  # fmt: skip
            cells = " | ".join(one.difference() for one in over)
            yield f"| {name} | over the three splits | {cells} | {over[0].n} |"


def factor_rows():
    """What is there at imbalance factor 10, with the number of seeds."""
    runs, adjusted = recorded(TENTH, VGG, 30)
    for method in ("teacher", "kd", "kd_ce1", "ltkd", "balanced_softmax"):
        part = runs[runs["method"] == method]
        one = adjusted[(adjusted["method"] == method) & (adjusted["tau"] == 1)]
        cells = [t_interval(part[m]).plus_minus() for m in METRICS]
        if one["as_trained"].any():
            cells += ["as trained", "", "", ""]
        else:
            cells += [t_interval(one[m]).plus_minus() for m in METRICS]
        label = tables.marked(part["label"].iloc[0])
        name = "Teacher VGG13" if method == "teacher" else label
        yield f"| {name} | {' | '.join(cells)} |".replace("  ", " ")


def factor_difference_rows():
    whole = students(*recorded(TENTH, VGG, 30))
    for better, worse in (
        ("ltkd", "kd"), ("kd_ce1", "kd"), ("ltkd", "kd_ce1"), ("ltkd", "balanced_softmax"),
        ("kd_removed", "ltkd"), ("kd_ce1_removed", "kd_ce1"),
        ("kd_ce1_removed", "ltkd"), ("ltkd_removed", "kd_ce1_removed"),
        ("kd_ce1_removed", "balanced_softmax"),
    ):  # fmt: skip
        name, cells, n = step(whole, better, worse)
        yield f"| {name} | {cells} | {n} |"


def factor_part_rows():
    """The ablation's cells there, and their differences."""
    runs, _ = recorded(TENTH, VGG, 30)
    for method in ("kd", "cross_biased", "cross_rebalanced", "within_only", "ltkd"):
        part = runs[runs["method"] == method]
        cells = [t_interval(part[m]).plus_minus() for m in METRICS]
        yield f"| {tables.LABELS[method]} | {' | '.join(cells)} |"
    for better, worse in (
        ("cross_rebalanced", "cross_biased"), ("cross_biased", "kd"), ("cross_rebalanced", "kd"),
        ("within_only", "kd"), ("ltkd", "cross_rebalanced"), ("ltkd", "within_only"),
    ):  # fmt: skip
        name, cells, n = step(runs, better, worse)
        yield f"| {name} | {cells} | {n} |"
    own = runs.set_index(["method", "seed"])[list(METRICS)]
    more = (own.loc["ltkd"] + own.loc["kd"] - own.loc["cross_rebalanced"]
            - own.loc["within_only"]).dropna()  # fmt: skip
    cells = " | ".join(t_interval(more[m]).difference() for m in METRICS)
    yield f"| gain of both terms − the sum of their gains | {cells} | {len(more)} |"


def factor_image_rows():
    runs, data = recorded(TENTH, VGG, 30)[0], load("cifar100", 10.0)
    told = {run: np.load(ROOT / "outputs" / TENTH / "runs" / run / "predictions.npy")
            for run in runs["run"]}  # fmt: skip
    for one, other in (("ltkd", "kd"), ("ltkd", "kd_ce1"), ("ltkd", "balanced_softmax"),
                       ("cross_rebalanced", "cross_biased")):  # fmt: skip
        found = tables.both_intervals(runs, told, data, one, other)
        cells = found.loc[list(METRICS), "over test images (bootstrap)"]
        pair = (tables.marked(tables.LABELS[name]) for name in (one, other))
        name = f"{' − '.join(pair)}, over test images"
        yield f"| {name} | {' | '.join(cells)} | |"


FITTED = (  # what has networks to fit tau to
    ("240 epochs", "cifar100_lt"), ("30 epochs", FIRST), ("30 epochs, second split", SECOND),
    ("30 epochs, third split", SPLITS["third"]), ("30 epochs, factor 10", TENTH),
)  # fmt: skip


def elsewhere_rows():
    """The tau fitted to the teachers' logits for other test sets, as the executed pages have it."""
    for schedule, study in FITTED:
        for where, rows in page_tables(study, "07_prior_removed", "minus τ = 1 − s"):
            (teacher,) = re.findall(r"Teacher (\S+), γ", where)
            for cells in rows[1:]:
                yield f"| {schedule} | {teacher} | {' | '.join(cells)} |".replace("s = ", "")


def fitted_rows():
    """Each network of which the tau fitted without labels is known, by schedule and method."""
    for schedule, study in FITTED:
        rows = []
        for path in sorted((ROOT / "outputs" / study / "runs").glob("*/adjusted.json")):
            curve = json.loads(path.read_text())
            if not curve.get("fitted"):
                continue
            record = json.loads(path.with_name("record.json").read_text())
            spec, images = record["spec"], sum(record["data"]["test_counts"])
            level = {tau: sum(correct) for tau, correct in
                     zip(curve["tau"], curve["correct"], strict=True)}  # fmt: skip
            own, best = float(METHODS[spec["method"]].balanced), max(level, key=level.get)
            found = sum(curve["fitted"]["correct"])
            gaps = [found - level[tau] for tau in (own, 1.0, best)]
            method = METHODS[spec["method"]].label
            who = f"{network_label(spec['student'])}, {tables.marked(method)}"
            who = f"Teacher {network_label(spec['student'])}" if method == "Teacher" else who
            cells = [f"{100 * found / images:.1f}"]
            cells += [f"{100 * gap / images:+.1f}".replace("-", "−") for gap in gaps]
            cells = [cell.replace("+0.0", "0.0").replace("−0.0", "0.0") for cell in cells]
            tau = curve["fitted"]["tau"]
            order = list(METHODS).index(spec["method"]), spec["student"], spec["seed"]
            rows.append((order, f"| {schedule} | {who} | {spec['seed']} | {tau:.2f} | "
                                f"{' | '.join(cells)} | {best:g} |"))  # fmt: skip
        yield from (row for _, row in sorted(rows))


def split_rows():
    """Differences on each split, and second less first of runs that begin from the same weights."""
    splits, by, metrics = both_splits(), ["name", "seed"], list(METRICS)
    first, second = (runs.set_index(by)[metrics] for runs in splits.values())
    moved = (second - first).dropna().reset_index()
    splits["second − first"] = splits["second"].drop(columns=metrics).merge(moved, on=by)
    for better, worse in SPLIT_STEPS:
        for split, runs in splits.items():
            name, cells, n = step(runs, better, worse, "name")
            yield f"| {name} | {split} | {cells} | {n} |"


def each_schedule():
    """Each schedule's curves of the methods that stand in the table of one pair."""
    for schedule, pair, adjusted in (
        ("240 epochs", RESNET, full()[1]),
        ("240 epochs, VGG8", VGG, full(VGG)[1]),
        ("30 epochs", RESNET, with_settings()),
        ("30 epochs, second split", RESNET, with_settings(SECOND)),
    ):
        yield schedule, adjusted[adjusted["method"].isin((*FULL[pair], SHARP))]


def height_of_each_rows():
    """Curves of each schedule, read where KD with weights 1 and 1 stands at tau = 1, and LTKD."""
    for schedule, adjusted in each_schedule():
        for reference in ("kd_ce1", "ltkd"):
            gaps = curves.at_equal_head(adjusted, reference)
            for method, part in gaps.groupby("method", sort=False):
                names = (tables.LABELS.get(m, m) for m in (method, reference))
                name, than = map(tables.marked, names)
                if (n := part["n"].iloc[0]) > 1:
                    yield f"| {schedule} | {name} − {than} | {gap_cells(part)} | {n} |"


def curve_at(head, part):
    """NaN where the curve does not reach that head accuracy."""
    curve = part.groupby("head")[["all", "medium", "tail"]].mean()
    return np.array([np.interp(head, curve.index, curve[m], np.nan, np.nan) for m in curve])


def ltkd_and_kd_rows(text, gap, ltkd="ltkd"):
    """Of each schedule ``gap`` (of a seed's curves of LTKD and of KD with weights 1 and 1) over
    the seeds whose curves reach so far; ``text`` says what it is, {} being that KD."""
    for schedule, adjusted in each_schedule():
        if ltkd not in set(adjusted["method"]):
            continue
        gaps = [
            gap(*(seed[seed["method"] == name] for name in (ltkd, "kd_ce1")))
            for _, seed in adjusted.groupby("seed")
        ]
        reached = [one for one in gaps if not np.isnan(one).any()]
        found = [t_interval(pd.Series(one)) for one in np.transpose(reached)]
        cells = " | ".join(one.difference() for one in found)
        name = text.format(tables.marked("KD, weights 1 and 1"))
        yield f"| {schedule} | {name} | {cells} | {found[0].n} |"


def tilt_rows():
    """LTKD less KD with weights 1 and 1 at LTKD's height, less the same at that of KD."""

    def tilt(ltkd, kd):
        heads = (part.loc[part["tau"] == 1, "head"].item() for part in (ltkd, kd))
        low, high = (curve_at(head, ltkd) - curve_at(head, kd) for head in heads)
        return low - high

    yield from ltkd_and_kd_rows("LTKD − {}, low less high", tilt)


def own_head_rows():
    """KD with weights 1 and 1 at the head accuracy that LTKD has as trained, less LTKD there."""

    def ahead(ltkd, kd):
        own = ltkd[ltkd["as_trained"]].iloc[0]
        return curve_at(own["head"], kd) - [own[m] for m in ("all", "medium", "tail")]

    yield from ltkd_and_kd_rows("{} − LTKD, at LTKD's as trained", ahead)
    yield from ltkd_and_kd_rows(f"{{}} − {SHARP}, at the latter's as trained", ahead, SHARP)


def over_seeds(schedule, what, gaps):
    """A row of differences, one a seed."""
    cells = [t_interval(gaps[m]).difference() for m in METRICS]
    return f"| {schedule} | {what} | {' | '.join(cells)} | {len(gaps)} |"


def teacher_removed_rows():
    """Each teacher with the prior removed, one and the same for every seed, less its students."""
    metrics = list(METRICS)
    for schedule, (runs, adjusted) in (
        ("240 epochs", full()), ("240 epochs, VGG8", full(VGG)), ("30 epochs", frames()),
    ):  # fmt: skip
        both = students(runs, adjusted)
        own = adjusted[(adjusted["method"] == "teacher") & (adjusted["tau"] == 1)].iloc[0]
        for other in ("ltkd", "kd_ce1_removed"):
            gaps = own[metrics].astype(float) - both.loc[both["method"] == other, metrics]
            yield over_seeds(schedule, f"teacher − {tables.marked(tables.LABELS[other])}", gaps)


def held_out_tau():
    """Of some settings the τ that is best for all classes on the tuning study's held-out images."""
    adjusted = frames("sweep", "cifar100_lt_tune", SETTINGS)[1]
    best = {name: part.groupby("tau")["all"].mean().idxmax()
            for name, part in adjusted.groupby("variant")}  # fmt: skip
    return {"kd_ce1": best["KD, ce_weight 1, kd_weight 1, temperature 4"],
            "ltkd": best["LTKD, alpha 1, beta 1"], SHARP: best["LTKD, temperature 2"],
            "LTKD, alpha 4": best["LTKD, alpha 4, beta 1"],
            "kd_adjusted": best["KD, adjusted teacher, ce_weight 1, kd_weight 1, temperature 4"],
            ADJUSTED: best["KD, adjusted teacher, ce_weight 1, kd_weight 1, temperature 2"],
            }  # fmt: skip


def held_out_rows():
    """Students with the τ that held-out images chose, less KD with weights 1 and 1 with its own,
    and less themselves as trained; LTKD less KD from an adjusted teacher; and that KD one and two
    steps of τ further, which the test images alone say."""
    chosen = held_out_tau()
    named = {method: f"{tables.marked(tables.LABELS.get(method, method))}, τ = {tau:g}"
             for method, tau in chosen.items()}  # fmt: skip
    for schedule, adjusted in (
        ("240 epochs", full()[1]), ("240 epochs, VGG8", full(VGG)[1]),
        ("30 epochs", with_settings()), ("30 epochs, second split", with_settings(SECOND)),
        ("30 epochs, third split", recorded(SPLITS["third"], VGG, 30)[1]),
    ):  # fmt: skip

        def at(method, tau=None, adjusted=adjusted):
            where = adjusted["as_trained"] if tau is None else adjusted["tau"] == tau
            own = adjusted[(adjusted["method"] == method) & where]
            return own.set_index("seed")[list(METRICS)]

        kd, tau = "KD, weights 1 and 1 (ours)", chosen["kd_ce1"]
        for method in ("ltkd", SHARP, "LTKD, alpha 4", "kd_adjusted", ADJUSTED):
            for than, of in (
                (named["kd_ce1"], at("kd_ce1", tau)), ("as trained", at(method)),
            ):  # fmt: skip
                gaps = (at(method, chosen[method]) - of).dropna()
                if len(gaps) > 1:
                    yield over_seeds(schedule, f"{named[method]} − {than}", gaps)
        for method, other in (("ltkd", "kd_adjusted"), (SHARP, ADJUSTED)):
            gaps = (at(method, chosen[method]) - at(other, chosen[other])).dropna()
            if len(gaps) > 1:
                yield over_seeds(schedule, f"{named[method]} − {named[other]}", gaps)
        for rival in (DKD, DIST, CATKD, REVIEWKD) if schedule == "30 epochs" else ():
            gaps = at("ltkd", chosen["ltkd"]) - at(rival, 1)
            yield over_seeds(schedule, f"{named['ltkd']} − {rival}, τ = 1", gaps)
        further = at("kd_ce1", 1.25) - at("kd_ce1", 1)
        yield over_seeds(schedule, f"{kd}, τ = 1.25 − τ = 1", further)
        for tau in (1.25, 1.5) if schedule.startswith("240") else ():
            gaps = at("ltkd", chosen["ltkd"]) - at("kd_ce1", tau)
            yield over_seeds(schedule, f"{named['ltkd']} − {kd}, τ = {tau:g}", gaps)
            gaps = at("kd_ce1", tau) - at("ltkd")
            yield over_seeds(schedule, f"{kd}, τ = {tau:g} − LTKD as trained", gaps)


STEPPED = (  # of each study: what its students are called in runs.csv
    ("30 epochs", FIRST, "vgg8", ("LTKD", SHARP, "LTKD, alpha 4", "Bal. softmax + LTKD",
     "KD, adjusted teacher", ADJUSTED, BIASED, "cross_rebalanced", "n = 10", "n = 100")),
    ("30 epochs, second split", "cifar100_lt_split1", "vgg8", ("LTKD", SHARP, ADJUSTED)),
    ("30 epochs, third split", "cifar100_lt_split2", "vgg8", ("LTKD", SHARP, ADJUSTED)),
    ("30 epochs, factor 10", TENTH, "vgg8", ("LTKD", "cross_rebalanced")),
    ("240 epochs", "cifar100_lt", "resnet8x4", ("LTKD",)),
    ("240 epochs, VGG8", "cifar100_lt", "vgg8", ("LTKD", "KD, adjusted teacher")),
)  # fmt: skip


def called(row):
    """What a run is in runs.csv: its setting or cell, its number of groups, or its method."""
    if row["part"] == "group_count":
        return f"n = {row['n_groups']:g}"
    return row["variant"] or row["label"]


def students_of(study, student):
    """(what it is called, seed, folder, record) of each run that makes such a student."""
    runs = listed(study)
    for row in runs[runs["student"] == student].to_dict("records"):
        at = ROOT / "outputs" / study / "runs" / row["run"]
        yield called(row), row["seed"], at, json.loads((at / "record.json").read_text())


def by_size(correct, about):
    """Accuracy in percent of each class, the largest first, of right answers [..., C]."""
    order = np.argsort(-np.array(about["counts"]), kind="stable")
    return (100 * np.array(correct) / np.array(about["test_counts"]))[..., order]


def by_class(study, student):
    """name -> seed -> accuracy of each class, the largest first, in percent."""
    found = {}
    for name, seed, _, record in students_of(study, student):
        each = by_size(record["history"][-1]["correct"], record["data"])
        found.setdefault(name, {})[seed] = each
    return found


def border_rows():
    """How far the gain over KD with weights 1 and 1 jumps: the eight classes below a border less
    the eight above it, and the same where none is, mean and standard deviation."""
    for schedule, study, student, names in STEPPED:
        own = by_class(study, student)
        for name in names:
            kd = own["KD, weights 1 and 1"]
            seeds = sorted(set(own[name]) & set(kd))
            gain = np.stack([own[name][seed] - kd[seed] for seed in seeds])
            at = {k: gain[:, k : k + 8].mean(1) - gain[:, k - 8 : k].mean(1) for k in range(8, 93)}
            cells = [t_interval(at[border]).difference() for border in (33, 67)]
            free = [one.mean() for k, one in at.items() if min(abs(k - 33), abs(k - 67)) >= 8]
            cells.append(f"{np.mean(free):+.1f} ± {np.std(free):.1f}".replace("-", "−"))
            text = f"{schedule} | {tables.marked(tables.LABELS.get(name, name))}"
            yield f"| {text} | {' | '.join(cells)} | {len(seeds)} |"


OWN_BEST = (
    ("240 epochs, ResNet8x4", "cifar100_lt", "resnet8x4", ("KD", "LTKD", "Balanced softmax")),
    ("240 epochs, VGG8", "cifar100_lt", "vgg8",
     ("Student alone", "KD", "LTKD", "KD, adjusted teacher", "Balanced softmax")),
    ("30 epochs", FIRST, "vgg8",
     ("Student alone", "KD", "LTKD", SHARP, "KD, adjusted teacher", ADJUSTED, "DKD", "DIST",
      "ReviewKD", "Balanced softmax", "Bal. softmax + KD (naive)",
      "Bal. softmax + KD, adjusted teacher", "Bal. softmax + KD, biased space",
      "Bal. softmax + LTKD")),
    ("30 epochs, second split", SECOND, "vgg8",
     ("KD", "LTKD", SHARP, ADJUSTED, "Balanced softmax")),
    ("30 epochs, third split", "cifar100_lt_split2", "vgg8",
     ("LTKD", ADJUSTED, "Balanced softmax")),
    ("30 epochs, factor 10", TENTH, "vgg8", ("KD", "LTKD", "Balanced softmax")),
)  # fmt: skip
PLAIN, QUARTERS = "KD, weights 1 and 1", np.arange(9) / 4


def by_class_and_tau(study, student):
    """name -> seed -> accuracy in percent at each tau [9, C], the largest class first; and the
    training images of those classes."""
    found = {}
    for name, seed, at, record in students_of(study, student):
        if (path := at / "adjusted.json").exists():
            each = by_size(json.loads(path.read_text())["correct"], record["data"])
            found.setdefault(name, {})[seed] = each
    return found, np.sort(record["data"]["counts"])[::-1]


def at_best(each):
    """A method's curves, seed -> [9] -> the index at which their mean is highest."""
    return int(np.mean([*each.values()], axis=0).argmax())


def own_best_rows():
    """Less KD with weights 1 and 1 at its best tau: as trained, then at the best tau of its own,
    for test classes as frequent as pi^s."""

    def weighed(own, weights):
        return {seed: np.average(each, axis=1, weights=weights) for seed, each in own.items()}

    for schedule, study, student, names in OWN_BEST:
        own, counts = by_class_and_tau(study, student)
        for name in (PLAIN, *names):
            cells = []
            for s in (1.0, 0.5, 0.0, -0.5):
                kd, its = (weighed(own[one], counts**s) for one in (PLAIN, name))
                seeds, best = sorted(set(kd) & set(its)), at_best(its)
                first, gap = (
                    t_interval(its[seed][at] - kd[seed][at_best(kd)] for seed in seeds)
                    for at in (4 * name.startswith("Bal"), best)  # as trained: tau 0 or 1
                )
                start = first.difference().split(" ")[0]
                end = gap.difference() if name != PLAIN else "0"
                cells.append(f"{start} → {end}, τ {QUARTERS[best]:g}")
            name = tables.marked(tables.LABELS.get(name, name))
            yield f"| {schedule} | {name} | {' | '.join(cells)} | {len(seeds)} |"


def span_rows():
    """Lowest and highest mean of the students that KD, LTKD and KD from an adjusted teacher make
    with weights 1 and 1, as trained and each at its best tau."""
    for schedule, study, student, _ in OWN_BEST:
        own = by_class_and_tau(study, student)[0]
        names = (PLAIN, "LTKD", SHARP, "KD, adjusted teacher", ADJUSTED)
        means = [np.mean([each.mean(1) for each in own[one].values()], axis=0)
                 for one in names if one in own]  # fmt: skip
        trained, best = [one[0] for one in means], [one.max() for one in means]
        cells = [f"{min(part):.1f} to {max(part):.1f}" for part in (trained, best)]
        yield f"| {schedule} | {len(means)} | {' | '.join(cells)} |"


def best_border_rows():
    """``border_rows``, each method and KD with weights 1 and 1 at its best tau, and the gain in
    each half of a group."""
    for schedule, study, student, names in OWN_BEST:
        own, _ = by_class_and_tau(study, student)
        level = {one: {seed: each.mean(1) for seed, each in own[one].items()} for one in own}
        for name in (one for one in names if one.startswith(("LTKD", "KD, adjusted"))):
            at, k = at_best(level[name]), at_best(level[PLAIN])
            seeds = sorted(set(own[name]) & set(own[PLAIN]))
            gain = np.stack([own[name][seed][at] - own[PLAIN][seed][k] for seed in seeds])
            jumps = [gain[:, b : b + 8].mean(1) - gain[:, b - 8 : b].mean(1) for b in (33, 67)]
            halves = [gain[:, a:b].mean(1) for a, b in ((0, 17), (17, 33), (33, 50), (50, 67),
                                                        (67, 84), (84, 100))]  # fmt: skip
            cells = [t_interval(one).difference() for one in jumps]
            cells += [t_interval(one).difference().split(" ")[0] for one in halves]
            name = f"{tables.LABELS.get(name, name)}, τ = {QUARTERS[at]:g}"
            yield f"| {schedule} | {tables.marked(name)} | {' | '.join(cells)} | {len(seeds)} |"


def poisson_slopes(often, parts):
    """Coefficients of log E[often] on a constant and ``parts`` [C, 2], by Newton's method."""
    x = np.c_[np.ones(len(often)), parts]
    found = np.array([np.log(np.mean(often)), 0.0, 0.0])
    for _ in range(50):
        expected = np.exp(x @ found)
        found += np.linalg.solve(x.T @ (expected[:, None] * x), x.T @ (often - expected))
    return found[1:]


BIASED_ROWS = (
    ("240 epochs, ResNet8x4", "cifar100_lt", "resnet8x4",
     ("KD", PLAIN, "LTKD", "Balanced softmax")),
    ("240 epochs, VGG8", "cifar100_lt", "vgg8",
     ("Student alone", "KD", PLAIN, "LTKD", "KD, adjusted teacher", "Balanced softmax")),
    ("30 epochs", FIRST, "vgg8",
     ("Student alone", "KD", PLAIN, "LTKD", SHARP, BIASED, "n = 10", "n = 100",
      "KD, adjusted teacher", "Balanced softmax", "Bal. softmax + KD, biased space",
      "Bal. softmax + LTKD", "DKD", "DIST", "CAT-KD", "ReviewKD")),
    ("30 epochs, second split", SECOND, "vgg8", (PLAIN, "LTKD", SHARP, ADJUSTED)),
    ("30 epochs, factor 10", TENTH, "vgg8", ("KD", PLAIN, "LTKD", "Balanced softmax")),
)  # fmt: skip


def groups_of(counts):
    """Head, medium and tail as 0, 1, 2, a class each."""
    group = np.empty(100, int)
    group[np.argsort(-counts, kind="stable")] = np.repeat([0, 1, 2], [33, 34, 33])
    return group


def prediction_bias(row, record, labels):
    """Bias between groups and within them, right group, right class in it, in percent."""
    counts = np.array(record["data"]["counts"])
    log_pi, group = np.log(counts / counts.sum()), groups_of(counts)
    mean = np.array([log_pi[group == g].mean() for g in group])
    guess = np.load(row / "predictions.npy")
    slopes = poisson_slopes(np.bincount(guess, minlength=100), np.c_[mean, log_pi - mean])
    placed, right = (group[guess] == group[labels]).mean(), (guess == labels).mean()
    return 100 * np.array([*slopes, placed, right / placed])


def bias_rows():
    labels = load("cifar100", 100.0, 0).test_labels.numpy()
    for schedule, study, student, names in BIASED_ROWS:
        found = {}
        for name, seed, at, record in students_of(study, student):
            found.setdefault(name, {})[seed] = prediction_bias(at, record, labels)
        for name in names:
            each, kd = found[name], found[PLAIN]
            cells = [t_interval(part).plus_minus().split(" (")[0]
                     for part in np.transpose([*each.values()])]  # fmt: skip
            gaps = np.transpose([each[seed] - kd[seed] for seed in each])
            less = [t_interval(part).difference() for part in gaps]
            less = ["", ""] if name == PLAIN else [less[0], less[1]]
            name = f"LTKD, {name}" if name.startswith("n =") else tables.LABELS.get(name, name)
            text = f"{schedule} | {tables.marked(name)} | {' | '.join(cells + less)}"
            yield f"| {text} | {len(each)} |"


HANDED_ON = (
    ("240 epochs, VGG8", "cifar100_lt", "vgg8",
     ("KD", PLAIN, "LTKD", "KD, adjusted teacher", "Balanced softmax")),
    ("30 epochs", FIRST, "vgg8",
     ("KD", PLAIN, "LTKD", "KD, adjusted teacher", "Balanced softmax",
      "Bal. softmax + KD, biased space")),
)  # fmt: skip


def handed_on(at, record, teacher, labels):
    """Head answers, and the teacher's own wrong answer given, where it errs headward, in the
    image's group and tailward, in percent."""
    group = groups_of(np.array(record["data"]["counts"]))
    guess, errs = np.load(at / "predictions.npy"), teacher != labels
    higher, lower = group[teacher] < group[labels], group[teacher] > group[labels]
    kinds = [errs & higher, errs & ~higher & ~lower, errs & lower]
    shares = [(guess[kind] == teacher[kind]).mean() for kind in kinds]
    return 100 * np.array([(group[guess] == 0).mean(), *shares])


def handed_on_rows():
    labels = load("cifar100", 100.0, 0).test_labels.numpy()
    for schedule, study, student, names in HANDED_ON:
        ((_, _, at, _),) = students_of(study, "vgg13")
        teacher, found = np.load(at / "predictions.npy"), {}
        for name, seed, at, record in students_of(study, student):
            found.setdefault(name, {})[seed] = handed_on(at, record, teacher, labels)
        alone, plain = found["Student alone"], found[PLAIN]
        cells = [t_interval(part).plus_minus().split(" (")[0]
                 for part in np.transpose([*alone.values()])]  # fmt: skip
        yield f"| {schedule} | Student alone | {' | '.join(cells)} | {len(alone)} |"
        steps = [(name, "Student alone", alone) for name in names]
        steps += [(name, f"{PLAIN} (ours)", plain) for name in ("LTKD", "KD, adjusted teacher")]
        for name, than, base in steps:
            both = sorted(base.keys() & found[name].keys())
            gaps = np.transpose([found[name][seed] - base[seed] for seed in both])
            cells = " | ".join(t_interval(part).difference() for part in gaps)
            name = tables.marked(tables.LABELS.get(name, name))
            yield f"| {schedule} | {name} − {than} | {cells} | {len(both)} |"


COUNTED = {"KD": (0,), "KD, weights 1 and 1": (0, 1), "LTKD": (0, 0.75),
           "KD, adjusted teacher": (0,), "Balanced softmax": (0,)}  # fmt: skip


def counted_rows():
    """Other ways to count: shots by number of images, forgotten classes, the ten worst, and test
    classes that are as unequal as in training, the same way about or the other."""
    for student in ("resnet8x4", "vgg8"):
        found = {}
        for path in sorted((ROOT / "outputs/cifar100_lt/runs").glob("*/record.json")):
            record = json.loads(path.read_text())
            method = METHODS[record["spec"]["method"]].label
            if record["spec"]["student"] != student or method not in COUNTED:
                continue
            n, total = (np.array(record["data"][key]) for key in ("counts", "test_counts"))
            curve = path.with_name("adjusted.json")
            removed = json.loads(curve.read_text()) if curve.exists() else {}
            for tau in COUNTED[method]:
                right = record["history"][-1]["correct"]
                if tau:
                    right = removed["correct"][removed["tau"].index(tau)]
                each = 100 * np.array(right) / total
                found.setdefault((method, tau), []).append([
                    each[n > 100].mean(), each[(n >= 20) & (n <= 100)].mean(), each[n < 20].mean(),
                    (each <= 1).sum(), np.sort(each)[:10].mean(),
                    np.average(each, weights=n), np.average(each, weights=n[::-1]),
                ])  # fmt: skip
        for method, taus in COUNTED.items():
            for tau in taus:
                if (method, tau) in found:
                    cells = map(t_interval, np.transpose(found[method, tau]))
                    text = " | ".join(one.plus_minus() for one in cells).replace(" (3)", "")
                    name = tables.marked(method) + f", τ = {tau:g}" * (tau > 0)
                    yield f"| {network_label(student)} | {name} | {text} |".replace(", equal", "")


def pooled_rows():
    """Half-widths of an interval from three seeds, with the spread pooled over the methods, as they
    are trained, with the prior removed, and each at its best τ."""
    assert set(frames()[0].groupby("method").size()) == {3}
    sources = {
        "30 epochs": frames(),
        "240 epochs, ResNet8x4": full(),
        "240 epochs, VGG8": full(VGG),
    }
    for schedule, (runs, adjusted) in sources.items():
        runs, own = (one[one["method"] != "teacher"] for one in (runs, adjusted))
        means = own.groupby(["method", "tau"])["all"].mean().unstack()
        best = own[own["tau"] == own["method"].map(means.idxmax(axis=1))]
        told = [("a mean", 1, runs), ("a difference of two", 2**0.5, runs),
                ("a difference, prior removed", 2**0.5, own[own["tau"] == 1]),
                ("a difference, each at its best τ", 2**0.5, best)]  # fmt: skip
        for what, factor, rows in told:
            by_method = rows.groupby("method")[list(METRICS)]
            free = by_method.size() - 1
            spread = by_method.var().mul(free, axis=0).sum() / free.sum()
            half = factor * (spread / 3) ** 0.5 * stats.t.ppf(0.975, free.sum())
            yield f"| {schedule} | {what} | {' | '.join(f'{value:.1f}' for value in half)} |"


def chosen_rows():
    runs, adjusted = frames("sweep", "cifar100_lt_tune", SETTINGS)
    for label, row in curves.chosen(runs, adjusted).iterrows():
        yield f"| {label} | {' | '.join(map(str, row))} |"


def taken_off_rows():
    reports = ROOT / "outputs/cifar100_lt_short/reports"
    yield "| KD, adjusted teacher (ours) | 1 | 0 | 0 |"
    taken = pd.read_csv(reports / "01_decomposition.taken-off-vgg13.csv")
    for t, part in taken.groupby("temperature"):
        for by, row in bias.correction_strengths(part).iterrows():
            if by.startswith("LTKD"):
                name = by.replace("\u00a0", " ")
                yield f"| {name}, T = {t:g} | {' | '.join(f'{value:.2f}' for value in row)} |"


def part_rows():
    """The ablation's cells, the group counts, and the settings that the tuning study chose."""
    for part, by in (("ablations", "variant"), ("group_count", "n_groups"), ("sweep", "variant")):
        for name, row in tables.accuracies(frames(part)[0], by).iterrows():
            text = " | ".join(row[list(METRICS)]).replace(" (3)", "")
            yield f"| {name} | {text} |"


def of_three_seeds(study=FIRST):
    """The curves of a study's settings at thirty epochs, where no seed's network is missing."""
    adjusted = frames("sweep", study, SETTINGS)[1]
    return adjusted[adjusted.groupby("variant")["seed"].transform("nunique") == 3]


def with_settings(study=FIRST):
    """The curves of a study's methods and settings, a setting being a method of its own."""
    own = of_three_seeds(study)
    return pd.concat([frames(study=study)[1], own.assign(method=own["variant"])])


def setting_removed_rows():
    for name, row in curves.after_training(of_three_seeds(), "variant").iterrows():
        yield f"| {name} | {' | '.join(row)} |".replace(" (3)", "")


def setting_height_rows():
    """Curves read at the head accuracy of KD with weights 1 and 1, prior removed."""
    gaps, own = curves.at_equal_head(with_settings()), of_three_seeds()["variant"]
    for name, part in gaps[gaps["method"].isin(own)].groupby("method", sort=False):
        yield f"| {tables.marked(name)} | {gap_cells(part)} |"


def by_name(study=FIRST):
    """The methods, cells of the ablation and settings of a study in one frame, by their names."""
    whole, removed = students(*frames(study=study)), curves.prior_removed(of_three_seeds(study))
    cells = pd.concat([frames(part, study)[0] for part in ("ablations", "sweep")])
    return pd.concat([
        cells.assign(name=cells["variant"]), whole.assign(name=whole["label"]),
        removed.assign(name=removed["variant"] + tables.REMOVED),
    ])  # fmt: skip


def step_rows():
    """Differences between cells of the ablation, settings and methods, paired by seed."""
    runs = by_name()
    for better, worse in STEPS:
        name, cells, _ = step(runs, better, worse, "name", ("all", "head", "tail"))
        yield f"| {name} | {cells} |"


FEWER = {
    teacher_rows: 2,
    full_accuracy_rows: 5,
    vgg_accuracy_rows: 7,
    vgg_removed_rows: 17,
    rival_rows: 3 * len(RIVALS),
    answer_rows: len(ANSWERS),
    tilt_rows: 4,
    own_head_rows: 4 + 2,
    held_out_rows: 43,
    border_rows: 20,
    factor_rows: 5,
    counted_rows: 13,
    own_best_rows: 39,
    span_rows: 6,
    best_border_rows: 13,
    elsewhere_rows: 18,
    pooled_rows: 12,
}


@pytest.mark.parametrize(
    ("file", "rows"),
    [("README.md", accuracy_rows), ("outputs/EVIDENCE.md", accuracy_rows),
     ("outputs/EVIDENCE.md", difference_rows), ("outputs/EVIDENCE.md", height_rows),
     ("outputs/EVIDENCE.md", chosen_rows), ("outputs/EVIDENCE.md", taken_off_rows),
     ("outputs/EVIDENCE.md", part_rows), ("outputs/EVIDENCE.md", step_rows),
     ("outputs/EVIDENCE.md", setting_removed_rows), ("outputs/EVIDENCE.md", setting_height_rows),
     ("outputs/EVIDENCE.md", teacher_rows), ("README.md", full_accuracy_rows),
     ("README.md", answer_rows), ("outputs/EVIDENCE.md", rival_rows),
     ("outputs/FINDINGS.md", full_accuracy_rows), ("outputs/FINDINGS.md", claim_rows),
     ("outputs/EVIDENCE.md", full_accuracy_rows), ("outputs/EVIDENCE.md", full_difference_rows),
     ("outputs/EVIDENCE.md", vgg_accuracy_rows), ("outputs/EVIDENCE.md", vgg_removed_rows),
     ("outputs/EVIDENCE.md", height_of_each_rows), ("outputs/EVIDENCE.md", tilt_rows),
     ("outputs/EVIDENCE.md", own_head_rows), ("outputs/EVIDENCE.md", split_accuracy_rows),
     ("outputs/EVIDENCE.md", split_rows), ("outputs/EVIDENCE.md", split_teacher_rows),
     ("outputs/EVIDENCE.md", over_splits_rows), ("outputs/EVIDENCE.md", held_out_rows),
     ("outputs/EVIDENCE.md", teacher_removed_rows), ("outputs/EVIDENCE.md", border_rows),
     ("outputs/EVIDENCE.md", counted_rows), ("outputs/EVIDENCE.md", factor_rows),
     ("outputs/EVIDENCE.md", factor_difference_rows),
     ("outputs/EVIDENCE.md", factor_part_rows),
     ("outputs/EVIDENCE.md", own_best_rows), ("outputs/EVIDENCE.md", span_rows),
     ("outputs/EVIDENCE.md", best_border_rows), ("outputs/EVIDENCE.md", fitted_rows),
     ("outputs/EVIDENCE.md", elsewhere_rows),
     ("outputs/EVIDENCE.md", pooled_rows)],
)  # fmt: skip
def test_every_stated_row_is_that_of_the_records(file, rows):
    text = (ROOT / file).read_text()
    found = list(rows())
    assert len(found) >= FEWER.get(rows, 6)
    for row in found:
        assert "—" not in row
        assert row in text


@pytest.mark.usefixtures("cifar100")
@pytest.mark.parametrize(
    ("rows", "n"),
    [(vgg_difference_rows, 12), (factor_image_rows, 4), (bias_rows, 34), (handed_on_rows, 17)],
)
def test_every_row_of_the_predictions_is_theirs(rows, n):
    text = (ROOT / "outputs/EVIDENCE.md").read_text()
    found = list(rows())
    assert len(found) == n
    for row in found:
        assert row in text


if __name__ == "__main__":
    for rows in (
        accuracy_rows, difference_rows, height_rows, chosen_rows, taken_off_rows, part_rows,
        step_rows, setting_removed_rows, setting_height_rows, teacher_rows, full_accuracy_rows,
        full_difference_rows, height_of_each_rows, tilt_rows, own_head_rows,
        vgg_accuracy_rows, vgg_removed_rows, vgg_difference_rows, rival_rows, answer_rows,
        claim_rows, split_accuracy_rows, split_rows, split_teacher_rows, over_splits_rows,
        held_out_rows, teacher_removed_rows, border_rows, counted_rows,
        factor_rows, factor_difference_rows, factor_part_rows, pooled_rows, own_best_rows,
        span_rows,
        best_border_rows, bias_rows, factor_image_rows, fitted_rows, elsewhere_rows,
    ):  # fmt: skip
        print(*rows(), "", sep="\n")
