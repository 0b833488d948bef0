"""The paper's numbers, as data: each cell with where it stands and how far to trust it.

Top-1 accuracy in percent on the balanced test set; "tail" is the mean over the tail classes. What
was repaired or inferred in each file stands in ``ltkd/paper/README.md``.
"""

from functools import cache
from importlib import resources
from typing import NamedTuple

import pandas as pd

from ..params import NETWORKS, RECIPES, network_label

TITLES = {"digits": "Digits-LT", "cifar10": "CIFAR-10-LT", "cifar100": "CIFAR-100-LT",
          "tiny_imagenet": "TinyImageNet-LT", "imagenet": "ImageNet-LT"}  # fmt: skip
# Table -> file, column that tells its rows apart, data set, gamma (None: a column), trust.
_TABLES = {
    "main": ("main_imagenet_lt", "method", "imagenet", None, "primary"),
    "ablations": ("ablations", "variant", "cifar100", 10.0, "primary; data set and γ inferred"),
    "group_count": ("group_count", "n_groups", "cifar100", 100.0, "repaired"),
    "secondary": ("cifar100_lt_secondary", "method", "cifar100", None, "secondary"),
}
# The group-count table as the slides print it: three rows, n = 3 4 5 10 20 25 50 100 twice in each.
PRINTED_GROUP_COUNTS = {
    "R32x4-R8x4": [51.08, 51.08, 51.10, 51.14, 50.99, 50.34, 50.06, 50.41,
                   47.66, 47.85, 48.06, 48.26, 48.69, 48.58, 48.19, 47.82],
    "VGG13-VGG8": [47.66, 47.85, 48.06, 48.26, 48.45, 48.69, 48.81, 49.01,
                   48.60, 48.98, 49.03, 49.27, 49.54, 49.90, 49.64, 47.95],
    "WRN402-SV1": [48.60, 48.98, 49.03, 49.27, 49.54, 49.90, 49.64, 47.95,
                   42.45, 43.01, 42.99, 43.40, 43.43, 43.42, 42.51, 41.18],
}  # fmt: skip


class Setting(NamedTuple):
    """What two numbers must share before their difference means anything."""

    dataset: str
    gamma: float
    teacher: str
    student: str
    epochs: int
    schedule: str = "steps"

    @property
    def title(self) -> str:
        """'CIFAR-100-LT, γ = 100, VGG13-VGG8, 240 epochs'."""
        pair = f"{network_label(self.teacher)}-{network_label(self.student)}"
        steps = "" if self.schedule == "steps" else f" ({self.schedule})"
        name = TITLES.get(self.dataset, self.dataset)
        return f"{name}, γ = {self.gamma:g}, {pair}, {self.epochs} epochs{steps}"

    def _repr_markdown_(self) -> str:
        return f"**{self.title}**"

    @property
    def table(self) -> str:
        """Which of the paper's tables compares methods in it, or on its data set, as far as we have
        them; of some pairs we know LTKD alone, from the table of group counts."""
        alone = self in settings("three_groups") and self not in settings("secondary")
        return "three_groups" if alone else self.teacher_table

    @property
    def teacher_table(self) -> str:
        """Which of them has teachers, too, if any has."""
        return "main" if self.dataset == "imagenet" else "secondary"

    @property
    def slug(self) -> str:
        """The setting as part of a file name."""
        return f"{self.teacher}-{self.student}-gamma{self.gamma:g}"


@cache
def _load() -> pd.DataFrame:
    parts = []
    for table, (file, key, dataset, gamma, trust) in _TABLES.items():
        with (resources.files("ltkd") / "paper" / f"{file}.csv").open(encoding="utf-8") as lines:
            part = pd.read_csv(lines, dtype={key: str}).assign(table=table, dataset=dataset)
        part["cell"] = part[key].str.lower().str.replace("-", "", regex=False)
        if dataset == "imagenet":  # "resnet18" there is not a network for 32 pixels
            for column in ("teacher", "student"):
                own = part[column] + "_imagenet"
                part[column] = own.where(own.isin(NETWORKS), part[column])
        parts.append(part.assign(trust=trust, gamma=part["gamma"] if gamma is None else gamma))
        if table == "group_count":  # its LTKD of three groups is a cell of a table of methods, too
            three = parts[-1][part["cell"] == "3"]
            parts.append(three.assign(table="three_groups", cell="ltkd"))
    columns = ["table", "dataset", "gamma", "teacher", "student", "cell", "metric", "top1", "trust"]
    return pd.concat(parts, ignore_index=True).astype({"gamma": float})[columns]


def reported(table: str, **where: object) -> pd.DataFrame:
    """The paper's cells, a row each: ``reported("secondary", cell="ltkd", metric="tail")``.

    ``table`` is main, secondary, ablations, group_count or three_groups (LTKD's, of the table of
    group counts). ``cell`` tells its rows apart: a method
    by our name ("catkd"), a variant of the ablation ("within_only") or a number of groups ("25").
    """
    rows = _load()
    for column, value in {"table": table, **where}.items():
        if column not in rows:
            raise ValueError(
                f"{column} = {value!r}: no such column; allowed: {', '.join(rows.columns)}"
            )
        known = rows[column].unique().tolist()
        rows = rows[rows[column] == value]
        if rows.empty:
            raise ValueError(f"{column} = {value!r}: the paper has no such cell; allowed: {known}")
    return rows.reset_index(drop=True)


def settings(table: str) -> list[Setting]:
    """The settings of one of the paper's tables, with the epochs of the common code, which are
    taken for the paper's [inferred]."""
    keys = reported(table)[["dataset", "gamma", "teacher", "student"]].drop_duplicates()
    return [Setting(data, gamma, teacher, student, RECIPES[data].epochs)
            for data, gamma, teacher, student in keys.values.tolist()]  # fmt: skip


def comparable(setting: Setting, table: str) -> bool:
    """Whether the table has this very setting: data set, gamma, both networks, the schedule."""
    return setting in settings(table)


def beside(setting: Setting, table: str) -> tuple[str, pd.DataFrame]:
    """The part of ``table`` to show beside ``setting``, and the heading that says what it is.

    The closest setting there: the same networks and gamma, else the same networks, else the first.
    """
    near = max(settings(table), key=lambda s: (s[:4] == setting[:4], s[2:4] == setting[2:4]))
    rows = reported(table, **dict(zip(near._fields[:4], near, strict=False)))
    trust = rows["trust"].iloc[0]
    if near == setting:
        return f"**Beside the paper** ({near.title}; {trust}): the same setting.", rows
    return (
        f"**The paper's numbers are of another setting** ({near.title}; {trust}); this study is "
        f"{setting.title}. They stand here for their pattern; no difference is computed."
    ), rows
