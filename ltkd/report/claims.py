"""The study's answers: the paper's claims, tested one by one, and what the paper does not ask."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import Markdown

from ..files import many
from . import bias, paper, tables
from .intervals import METRICS, Interval, t_interval, verdict
from .paper import Setting
from .tables import LABELS, interval_of, marked, minus, paired

CLAIMS = {
    1: "The teacher's mass goes to the head, and rebalancing evens it",
    2: "LTKD beats KD, on the tail and overall",
    3: "The LTKD student exceeds its own teacher on the tail",
    4: "The rebalanced cross term beats the biased one, and both terms beat either alone",
    5: "The number of groups matters little, from 3 to 25",
    6: "LTKD beats DKD, ReviewKD, DIST and CAT-KD",
}
NOT_TESTED = "not tested here"
# What paired differences decide: claim, part, column, better, worse; each on the tail and overall.
_PAIRED = (
    (2, "distillation", "method", "ltkd", "kd"),
    (4, "ablations", "variant", "cross_rebalanced", "cross_biased"),
    (4, "ablations", "variant", "cross_and_within", "cross_rebalanced"),
    (4, "ablations", "variant", "cross_and_within", "within_only"),
    *(
        (6, "distillation", "method", "ltkd", rival)
        for rival in ("dkd", "reviewkd", "dist", "catkd")
    ),
)
QUESTIONS = (
    ("Is it the weight of the labels alone?", "kd_ce1", "kd"),
    ("Does LTKD beat KD at the same outer weights?", "ltkd", "kd_ce1"),
    ("Does LTKD beat KD from an adjusted teacher?", "ltkd", "kd_adjusted"),
    ("Does LTKD beat balanced softmax (no teacher)?", "ltkd", "balanced_softmax"),
    ("Does plain KD add to balanced softmax?", "balanced_softmax_kd", "balanced_softmax"),
    ("Does KD, adjusted teacher, add to bal. softmax?", "balanced_softmax_kd_adjusted",
     "balanced_softmax"),
    ("Does KD, biased space, add to bal. softmax?", "balanced_softmax_kd_biased",
     "balanced_softmax"),
    ("Does LTKD add to balanced softmax?", "balanced_softmax_ltkd", "balanced_softmax"),
    ("Does LTKD add more than KD, adjusted teacher?", "balanced_softmax_ltkd",
     "balanced_softmax_kd_adjusted"),
    ("Balanced softmax and a teacher, against LTKD?", "balanced_softmax_kd_biased", "ltkd"),
)  # fmt: skip
AFTER = (
    ("Prior removed after training: what does it bring?", "kd_ce1_removed", "kd_ce1"),
    ("Is the student alone as good, corrected too?", "kd_ce1_removed", "student_removed"),
    ("Is LTKD as trained as good?", "kd_ce1_removed", "ltkd"),
    ("Is LTKD better, corrected too?", "ltkd_removed", "kd_ce1_removed"),
    ("Is balanced softmax, without a teacher, as good?", "kd_ce1_removed", "balanced_softmax"),
    ("Both without a teacher: which is better?", "student_removed", "balanced_softmax"),
    ("Is balanced softmax with a teacher as good?", "kd_ce1_removed", "balanced_softmax_kd_biased"),
    ("Is balanced softmax, adjusted teacher, as good?", "kd_ce1_removed",
     "balanced_softmax_kd_adjusted"),
)  # fmt: skip


class Comparison(NamedTuple):
    """One test that bears on a claim."""

    claim: int
    text: str
    gap: Interval
    unit: str = "seed"
    margin: float | None = None


def group_margin() -> float:
    """What "little" means: the largest change from n = 3 in the paper's own table up to n = 25."""
    grid = paper.reported("group_count").pivot_table(index="cell", columns="student", values="top1")
    return float((grid[grid.index.astype(int) <= 25] - grid.loc["3"]).abs().max().max())


def group_tests(study: Any, setting: Setting, runs: pd.DataFrame) -> list[Comparison]:
    """What claim 5 is about: the changes from n = 3 up to 25 groups of at least four classes.

    The paper's 25 groups of 100 classes hold four each; one class a group is another method.
    """
    gaps, most = paired(runs, 3, "n_groups", ["all"]), len(study.data(setting.gamma).counts) // 4
    wanted = sorted(n for n in gaps["n_groups"] if 3 < n <= min(25, most))
    asked = sorted({int(cell) for cell in paper.reported("group_count")["cell"]} - set(wanted))
    rest = [f"{n}" for n in asked if 3 < n <= min(25, most)]
    found = [(f"{n:g}", interval_of(gaps, n_groups=n)) for n in wanted]
    if rest or not found:
        found.append((", ".join(rest) or "4 to 25", Interval()))
    margin = group_margin()
    return [Comparison(5, f"n = {n} − n = 3, all", gap, margin=margin) for n, gap in found]


def paired_tests(own: dict[str, pd.DataFrame]) -> Iterator[Comparison]:
    """What paired differences decide, of the parts that are in ``own``."""
    for claim, part, by, better, worse in _PAIRED:
        if part in own:
            gaps = paired(own[part], worse, by)
            for metric in ("tail", "all"):
                gap = interval_of(gaps, **{by: better, "metric": metric})
                yield Comparison(claim, f"{minus(LABELS[better], LABELS[worse])}, {metric}", gap)


def _comparisons(
    study: Any, setting: Setting, own: dict[str, pd.DataFrame]
) -> Iterator[Comparison]:
    if setting.gamma == study.data().gamma:
        pair = next(p for p in study.pairs if tuple(p) == (setting.teacher, setting.student))
        logits, labels = study.teacher_logits(pair, "test")
        excess = bias.head_excess(logits, labels, study.data().groups(3), study.temperature)
        yield Comparison(1, "head: teacher − labels, test images", excess, "image")
        found = bias.mass_effects(bias.batches(study, pair))
        yield Comparison(1, bias.SPREAD, found[bias.SPREAD], "batch")
    else:
        yield Comparison(1, "looked at in the first imbalance factor alone", Interval())
    yield from paired_tests(own)
    ltkd = own["distillation"].query("method == 'ltkd'")["tail"]
    teacher = tables.own_teacher(setting, study.results("teachers"))["tail"]
    yield Comparison(3, "LTKD − its teacher, tail", t_interval(ltkd - teacher))
    yield from group_tests(study, setting, own["group_count"])


def tested(tests: Iterable[Comparison]) -> pd.DataFrame:
    """A row a test: claim, comparison, verdict, points (and interval), n."""
    rows = []
    for test in tests:
        result = verdict(test.gap, test.margin) if test.gap.n else NOT_TESTED
        n = many(test.gap.n, test.unit) if test.gap.n else "—"
        rows.append({"claim": test.claim, "comparison": test.text, "verdict": result,
                     "points": test.gap.difference(), "n": n})  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "comparison", "verdict", "points", "n"])


def claims(study: Any) -> pd.DataFrame:
    """Every test of every claim: setting, claim, comparison, verdict, points (and interval), n."""
    parts = ("distillation", "ablations", "group_count")
    found = {part: dict(tables.settings(study, part)) for part in parts}
    none = pd.DataFrame(columns=["method", "variant", "n_groups", "seed", *METRICS])
    rows = [tested([]).assign(setting="")]
    for setting in dict.fromkeys(s for own in found.values() for s in own):
        own = {part: found[part].get(setting, none) for part in parts}
        tests = sorted(_comparisons(study, setting, own), key=lambda test: test.claim)
        rows.append(tested(tests).assign(setting=setting.title))
    return pd.concat(rows, ignore_index=True)[["setting", *rows[0].columns[:-1]]]


def verdicts(tests: pd.DataFrame) -> pd.DataFrame:
    """A row a setting and claim: contradicted by any of its tests, confirmed by all.

    Where some did not run, and all others confirm it: confirmed where tested.
    """
    rows = []
    for (setting, claim), part in tests.groupby(["setting", "claim"], sort=False):
        ran = part.loc[part["verdict"] != NOT_TESTED, "verdict"]
        bad = next((v for v in ("contradicted", "not resolved") if v in set(ran)), None)
        good = "confirmed" if len(ran) == len(part) else "confirmed where tested"
        confirmed = f"{(ran == 'confirmed').sum()} of {len(ran)}"
        rows.append({"setting": setting, "claim": f"{claim}. {CLAIMS[int(str(claim))]}",
                     "verdict": (bad or good) if len(ran) else NOT_TESTED,
                     "tests confirmed": confirmed, "not tested": len(part) - len(ran)})  # fmt: skip
    return pd.DataFrame(rows).set_index("claim").rename_axis(None)


def questions(
    runs: pd.DataFrame, asked: Iterable[tuple[str, str, str]] = QUESTIONS
) -> pd.DataFrame:
    """What the paper does not ask: the tail's gain beside the head's loss, paired by seed."""
    rows = {}
    for text, better, worse in asked:
        gaps = paired(runs, worse)
        found = {m: interval_of(gaps, method=better, metric=m) for m in ("all", "tail", "head")}
        shown = {metric: gap.difference() for metric, gap in found.items()}
        side = found["tail"].side if found["tail"].n else NOT_TESTED
        name = f"{marked(LABELS[better])} − {marked(LABELS[worse])}"
        rows[name] = {**shown, "on the tail": side, "n": found["tail"].n, "question": text}
    return pd.DataFrame.from_dict(rows, orient="index")


def asked_here(rows: pd.DataFrame) -> list[Any]:
    """Of ``questions``, or of ``tested`` by comparison, the rows that ran, and a line that names
    the others."""
    left = (rows == NOT_TESTED).any(axis=1)
    names = dict.fromkeys(re.sub(r", (tail|all)$| \(ours\)", "", str(k)) for k in rows.index[left])
    out: list[Any] = [] if left.all() else [rows[~left]]
    if names:
        out.append(Markdown(f"*{NOT_TESTED.capitalize()}: {'; '.join(names)}.*"))
    return out


def ablation_pattern(runs: pd.DataFrame) -> pd.DataFrame:
    """What the paper's own ablation shows beside its claims, tested on ours, tail and overall: each
    cross-group term alone lies below KD overall, and the two terms gain more together than apart.

    runs: the cells of one setting. A row a test; of cells that did not run there is none.
    """
    tests = []
    for cell in ("cross_biased", "cross_rebalanced"):
        gap = interval_of(paired(runs, cell, "variant"), variant="baseline", metric="all")
        tests.append(Comparison(4, f"{minus(LABELS['baseline'], LABELS[cell])}, all", gap))
    for metric in ("tail", "all"):
        own = runs.pivot_table(index="seed", columns="variant", values=metric)
        if {"baseline", "cross_rebalanced", "within_only", "cross_and_within"} <= set(own):
            whole = own["cross_and_within"] + own["baseline"]
            more = whole - own["cross_rebalanced"] - own["within_only"]
            text = f"gain of both terms − the sum of their gains, {metric}"
            tests.append(Comparison(4, text, t_interval(more)))
    found = tested(test for test in tests if test.gap.n)
    return found.drop(columns="claim").set_index("comparison")


def headline(setting: Setting, runs: pd.DataFrame) -> Markdown:
    """The study in one sentence: LTKD against KD and against the simplest corrections, and both
    corrected."""
    parts, seeds = [], set()
    rivals = ("kd", "kd_adjusted", "balanced_softmax", "kd_ce1_removed")
    for better, worse in [*(("ltkd", rival) for rival in rivals), ("ltkd_removed", rivals[-1])]:
        gaps = paired(runs, worse)
        tail, whole = (interval_of(gaps, method=better, metric=m) for m in ("tail", "all"))
        if tail.n:
            seeds.add(tail.n)
            parts.append(
                f"**{minus(LABELS[better], LABELS[worse])}** is {tail.difference()} points on the "
                f"tail ({tail.side}) and {whole.difference()} overall ({whole.side})"
            )
    if not parts:
        return Markdown(f"{setting.title}: LTKD or its references are not among the runs.")
    n = " to ".join(str(n) for n in sorted({min(seeds), max(seeds)}))
    how = "One seed" if n == "1" else f"95 % t intervals, paired over n = {n} seeds"
    return Markdown(f"{setting.title}: {'; '.join(parts)}. {how}, for one split and one teacher.")
