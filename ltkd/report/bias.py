"""Where the bias is: in a teacher's probability, in what a loss takes off it, in the answers.

Functions take logits, or the rows of one setting: see ``tables.settings``.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy import stats
from sklearn.linear_model import PoissonRegressor

from ..groups import GROUPS, class_groups
from ..losses.decomposition import group_log_probs
from ..losses.ltkd import log_batch_mass, rebalance
from .intervals import TAILS, Interval, bootstrap, number, t_interval
from .tables import LABELS, PLAIN, marked


def teacher_mass(
    logits: Any, labels: Any, groups: Any, batch: str, *, size: int, draws: int = 100,
    temperature: float = 4.0,
) -> pd.DataFrame:  # fmt: skip
    """Where a teacher's probability goes in batches: the share of each group in percent.

    logits [N, C], labels [N], groups [C]. batch "balanced": every class equally often (to one
    image); "long-tailed": images at random. Tidy: batch, draw, stage, group, share; the stages are
    the labels, the teacher, and the teacher as LTKD rebalances it.
    """
    rng, rows = np.random.default_rng(0), []
    labels, ids, n = np.asarray(labels), torch.as_tensor(groups), int(max(groups)) + 1
    log_g, _ = group_log_probs(torch.as_tensor(logits).double(), ids, n, temperature)
    members = [np.flatnonzero(labels == c) for c in range(len(ids))]
    for draw in range(draws):
        chosen = rng.choice(len(labels), size)
        if batch == "balanced":
            turns = [rng.permutation(len(ids)) for _ in range(-(-size // len(ids)))]
            chosen = np.array([rng.choice(members[c]) for c in np.concatenate(turns)[:size]])
        own = log_g[chosen]
        stages = {
            "labels": np.bincount(ids.numpy()[labels[chosen]], minlength=n) / size,
            "teacher": own.exp().mean(0).numpy(),
            "rebalanced": rebalance(own, log_batch_mass(own)).exp().mean(0).numpy(),
        }
        rows += [
            {"batch": batch, "draw": draw, "stage": stage, "group": GROUPS[g], "share": 100 * part}
            for stage, share in stages.items() for g, part in enumerate(share)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def batches(study: Any, pair: Any) -> pd.DataFrame:
    """``teacher_mass`` in balanced test and long-tailed training batches, at the first gamma; as
    many images a batch as LTKD's b is a sum over."""
    groups, t = study.data().groups(3), study.temperature
    kinds = {"balanced": study.teacher_logits(pair, "test"),
             "long-tailed": study.teacher_logits(pair, "train")}  # fmt: skip
    return pd.concat([teacher_mass(logits, labels, groups, kind, temperature=t, size=study.batch)
                      for kind, (logits, labels) in kinds.items()], ignore_index=True)  # fmt: skip


SPREAD = "spread over groups: biased − rebalanced, long-tailed batches"


def mass_effects(mass: pd.DataFrame) -> dict[str, Interval]:
    """What batches show of the paper's first claim, in points of probability, with the middle 95 %
    of batches; n counts batches."""
    share = mass.pivot_table(index=["batch", "draw"], columns=["stage", "group"], values="share")
    spread = {s: np.ptp(share[[s]].to_numpy(), axis=1) for s in ("teacher", "rebalanced")}
    removed = pd.Series(spread["teacher"] - spread["rebalanced"], share.index)
    excess = (share["teacher", "head"] - share["labels", "head"]).xs("balanced", level="batch")
    effects = {
        "head: teacher − labels, balanced batches": excess,
        SPREAD: removed.xs("long-tailed", level="batch"),
    }
    low, high = ({name: float(x.quantile(q)) for name, x in effects.items()} for q in TAILS)
    return {k: Interval(x.mean(), low[k], high[k], len(x)) for k, x in effects.items()}


def head_excess(logits: Any, labels: Any, groups: Any, temperature: float) -> Interval:
    """How much more of a teacher's probability is the head's than of the test images, in points,
    with its ``bootstrap`` interval; n counts images. logits [N, C], labels [N], groups [C]."""
    labels, ids = np.asarray(labels), torch.as_tensor(groups)
    log_g, _ = group_log_probs(
        torch.as_tensor(logits).double(), ids, int(ids.max()) + 1, temperature
    )
    excess = log_g.exp()[:, 0].numpy() - (ids.numpy()[labels] == 0)
    found = bootstrap(excess, labels, ids.numpy())
    return Interval.of(found[found["metric"] == "all"].iloc[0])


def corrections(
    logits: Any, counts: Any, groups: Sequence[int], *, temperature: float, size: int,
    draws: int = 100,
) -> pd.DataFrame:  # fmt: skip
    """What is taken off a teacher's logits, class by class, less its mean over the classes.

    KD from an adjusted teacher is zero at z_T - log pi, LTKD, in a batch, at z_T - T log b_G. Here
    are log pi and, for each number of groups, T log b over ``draws`` random batches of ``size``
    training images. Classes without an image are left out.

    logits [N, C] of training images, counts [C]. Tidy: by, rank (0 the largest class), count; prior
    (log pi, the mean over the class's group); mean; low, high: the middle 95 % of batches; scatter:
    the standard deviation over batches.
    """
    counts, rng = torch.as_tensor(counts), np.random.default_rng(0)
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    log_pi = (counts.double() / counts.sum()).log()[order].numpy()
    z = torch.as_tensor(logits).double()
    chosen = [
        torch.from_numpy(rng.choice(len(z), min(size, len(z)), replace=False)) for _ in range(draws)
    ]
    taken = {LABELS["kd_adjusted"]: (log_pi[None], log_pi)}
    for n in groups:
        ids = class_groups(counts, n)
        log_p, _ = group_log_probs(z, ids, n, temperature)
        log_b = torch.stack([log_batch_mass(log_p[batch]) for batch in chosen])
        prior = pd.Series(log_pi).groupby(ids[order].numpy()).transform("mean").to_numpy()
        taken[f"{LABELS['ltkd']}, n = {n}"] = temperature * log_b[:, ids[order]].numpy(), prior
    rows = []
    for by, (each, prior) in taken.items():
        each = each - each.mean(1, keepdims=True)
        low, high = np.quantile(each, TAILS, axis=0)
        rows.append(pd.DataFrame({
            "by": by, "rank": range(len(order)), "count": counts[order], "mean": each.mean(0),
            "prior": prior - prior.mean(), "low": low, "high": high, "scatter": each.std(0),
        }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def correction_strengths(taken: pd.DataFrame) -> pd.DataFrame:
    """``corrections`` in three numbers each: the slope on log pi between the groups (1: all of it;
    NaN where groups are as frequent), the distance to log pi over the classes, inside the groups
    too, and the scatter over batches."""
    rows, log_pi = {}, taken.groupby("by", sort=False).get_group(LABELS["kd_adjusted"])["prior"]
    for by, part in taken.groupby("by", sort=False):
        between, mean = part["prior"], part["mean"]
        spread = (between**2).sum()
        rows[str(by).replace(" ", "\u00a0")] = {
            "slope between groups": (mean * between).sum() / spread if spread > 1e-9 else np.nan,
            "distance to log π (rms)": ((mean.to_numpy() - log_pi) ** 2).mean() ** 0.5,
            "scatter over batches (sd)": part["scatter"].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def confusion(runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any) -> pd.DataFrame:
    """Where each group's test images go, percent over all seeds: label, true, predicted, share."""
    groups, rows = np.asarray(data.groups(3)), []
    truth = groups[np.asarray(data.test_labels)]
    for label, part in runs.groupby("label", sort=False):
        guesses = np.stack([groups[np.asarray(predictions[run])] for run in part["run"]])
        for a, b in product(np.unique(truth), range(len(GROUPS))):
            share = 100 * np.mean(guesses[:, truth == a] == b)
            rows.append({"label": label, "true": GROUPS[a], "predicted": GROUPS[b], "share": share})
    return pd.DataFrame(rows)


def class_gains(per_class: pd.DataFrame) -> pd.DataFrame:
    """What each class has more than under KD with weights 1 and 1, within a seed, in points.

    Of ``Study.per_class``, or ``at_best_share``, one setting's. Tidy: method, label, seed, rank (0
    the largest class), group, count, gain; empty where that KD did not run.
    """
    base = per_class[per_class["method"] == PLAIN] if len(per_class) else per_class
    if base.empty:
        return pd.DataFrame()
    both = per_class[per_class["method"] != PLAIN].merge(
        base[["seed", "class_id", "accuracy"]], on=["seed", "class_id"], suffixes=("", "_of_it")
    )
    ranked = base.drop_duplicates("class_id").sort_values(
        ["count", "class_id"], ascending=[False, True]
    )
    rank = dict(zip(ranked["class_id"], range(len(ranked)), strict=True))
    both = both.assign(
        rank=both["class_id"].map(rank), gain=both["accuracy"] - both["accuracy_of_it"]
    )
    columns = ["method", "label", "seed", "rank", "group", "count", "gain"]
    return both[columns].sort_values(["seed", "rank"], kind="stable", ignore_index=True)


def border_jumps(gains: pd.DataFrame, width: int = 8) -> pd.DataFrame:
    """How far ``class_gains`` jump where one group of classes ends and the next begins.

    A jump is the mean gain of the ``width`` largest classes below a border less that of the
    ``width`` smallest above it, with a t interval over seeds. Beside it the same between classes
    where no border is, mean and standard deviation over all such places. A row a method, a column a
    border; empty where a group has fewer than two times ``width`` classes.
    """
    if gains.empty or gains.groupby("group")["rank"].nunique().min() < 2 * width:
        return pd.DataFrame()
    borders = gains.groupby("group")["rank"].min().iloc[1:].tolist()
    rows: dict[str, dict[str, str]] = {}
    for label, part in gains.groupby("label", sort=False):
        each = part.pivot(index="seed", columns="rank", values="gain").to_numpy()

        def jump(at: int, each: np.ndarray = each) -> np.ndarray:
            return each[:, at : at + width].mean(1) - each[:, at - width : at].mean(1)

        free = [at for at in range(width, each.shape[1] - width + 1)
                if min(abs(at - border) for border in borders) >= width]  # fmt: skip
        elsewhere = np.array([jump(at).mean() for at in free])
        rows[marked(str(label))] = {
            f"from {above} to {below}": t_interval(jump(at)).difference()
            for at, above, below in zip(borders, GROUPS, GROUPS[1:], strict=False)
        } | {
            "elsewhere": f"{number(elsewhere.mean(), 1, '+')} ± {number(elsewhere.std(), 1)}",
            "seeds": str(len(each)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


BIAS = ("between groups", "within groups", "right group", "right class in it")


def prediction_bias(
    runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], data: Any
) -> pd.DataFrame:
    """How biased each run's answers are, between groups and within them: a row a run.

    "between groups" and "within groups", in percent, are 100 b and 100 w of a Poisson regression
    of how often each class is the answer, exp(a + b m + w (log pi - m)) a test image of it, with m
    the mean of log pi over its group (head, medium or tail): 0 is no bias, 100 answers as unequal
    as the training images. Not the share of the prior that is left: that one and the same prior
    makes answers the less unequal, the more accurate a network is. "right group" is the share of
    test images put into their own group, "right class in it" that of these which have their own
    class: their product is the accuracy. Classes without an image are left out; empty where the
    groups, or the classes within them, do not differ in number.
    """
    counts, groups = np.asarray(data.counts), np.asarray(data.groups(3))
    labels = np.asarray(data.test_labels)
    tests = np.bincount(labels, minlength=len(counts))
    known = (counts > 0) & (tests > 0)
    log_pi = pd.Series(np.log(counts[known] / counts.sum()))
    mean = log_pi.groupby(groups[known]).transform("mean")
    columns = ["run", "method", "label", "ours", "seed"]
    parts = np.stack([mean, log_pi - mean], 1)
    if (np.ptp(parts, axis=0) < 1e-9).any():
        return pd.DataFrame(columns=[*columns, *BIAS])
    rows = []
    for run in runs.to_dict("records"):
        guess = np.asarray(predictions[run["run"]])
        often = np.bincount(guess, minlength=len(counts))[known] / tests[known]
        fit = PoissonRegressor(alpha=0, tol=1e-8, max_iter=1000).fit(parts, often, tests[known])
        placed = 100 * np.mean(groups[guess] == groups[labels])
        found = *100 * fit.coef_, placed, 1e4 * np.mean(guess == labels) / max(placed, 1e-9)
        rows.append({key: run[key] for key in columns}
                    | dict(zip(BIAS, found, strict=True)))  # fmt: skip
    return pd.DataFrame(rows)


HANDED_ON = ("head answers", "same error: headward", "in its group", "tailward")


def handed_on(
    runs: pd.DataFrame, predictions: Mapping[str, np.ndarray], teacher: np.ndarray, data: Any
) -> pd.DataFrame:
    """How biased each run's answers are, and which errors of its teacher it repeats: a row a run.

    teacher [N]: the class ids that it answers to the test images. In percent: "head answers", the
    share of the run's answers that are head classes; and of the images that the teacher gets wrong
    those to which the run gives the very same answer, where that answer is of a group of more
    frequent classes than the image ("same error: headward"), of the image's own ("in its group")
    and of less frequent ones ("tailward"); NaN where the teacher has no such error.
    """
    groups, labels = np.asarray(data.groups(3)), np.asarray(data.test_labels)
    away = groups[teacher] - groups[labels]  # head is 0
    wrong, rows = teacher != labels, []
    for run in runs.to_dict("records"):
        guess = np.asarray(predictions[run["run"]])
        kinds = [wrong & (np.sign(away) == side) for side in (-1, 0, 1)]
        same = [100 * np.mean((guess == teacher)[kind]) if kind.any() else np.nan for kind in kinds]
        found = 100 * np.mean(groups[guess] == 0), *same
        rows.append({key: run[key] for key in ("run", "method", "label", "ours", "seed")}
                    | dict(zip(HANDED_ON, found, strict=True)))  # fmt: skip
    return pd.DataFrame(rows)


def with_group_counts(runs: pd.DataFrame, counted: pd.DataFrame) -> pd.DataFrame:
    """The methods' runs of a setting and, as methods of their own, LTKD's with other groups."""
    more = counted[~counted["run"].isin(runs["run"])]
    more = more.assign(label=[f"LTKD, n = {n:g}" for n in more["n_groups"]])
    return pd.concat([runs, more], ignore_index=True)


def frequency_sentence(per_class: pd.DataFrame) -> Markdown:
    """Rank correlation of class frequency and accuracy (mean over seeds), and head minus tail."""
    lines = []
    for label, part in per_class.groupby("label", sort=False):
        mean = part.groupby("class_id")[["accuracy", "count", "group"]].mean()
        flat = mean["accuracy"].nunique() < 2 or mean["count"].nunique() < 2
        rho = (
            "none" if flat else number(stats.spearmanr(mean["count"], mean["accuracy"])[0], 2, "+")
        )
        by_group = mean.groupby("group")["accuracy"].mean()
        text = (
            f"rank correlation {rho} over {len(mean)} classes, "
            f"head − tail {number(by_group.iloc[0] - by_group.iloc[-1], 1, '+')} points"
        )
        lines.append(f"- **{label}**, class frequency and accuracy: {text}")
    return Markdown("\n".join(lines))
