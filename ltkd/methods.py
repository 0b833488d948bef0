"""The methods a student can be trained with, each a line of data and one formula:

    ce_weight * CE(z_S + l, y)  +  ramp(epoch) * kd_weight * D(z_S + s, z_T - t)

D is one of the losses in ``ltkd.losses``. The shifts l, s, t are zero or the log of the training
class counts (or frequencies: the constant cancels). No torch is loaded before a method is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .train import Objective

Args = Mapping[str, float | bool]
_LTKD: Args = {"ce_weight": 1.0, "kd_weight": 1.0, "alpha": 1.0, "beta": 1.0, "temperature": 4.0}
_KD1: Args = {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 4.0}


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    loss       the distillation term, None for a student without a teacher
    args       its arguments and outer weights, with the field's defaults
    balanced   the label's loss is CE(z + log n): balanced softmax (Ren 2020), the same loss as
               logit-adjusted cross-entropy at tau = 1 (Menon 2021)
    adjust     where the class prior enters the distillation: "teacher" distils
               softmax((z_T - log pi) / T), "student" compares the raw teacher with z_S + log pi
    warmup     fraction of the schedule over which the distillation term rises to its weight
    ours       a rival that the paper does not have
    """

    name: str
    label: str
    reference: str
    loss: Literal["kd", "ltkd", "dkd", "dist"] | None = None
    args: Args = field(default_factory=dict)
    balanced: bool = False
    adjust: Literal["", "teacher", "student"] = ""
    warmup: float = 0.0
    ours: bool = False

    @property
    def uses_groups(self) -> bool:
        return self.loss == "ltkd"

    def build(self, args: Args, counts: Sequence[int], groups: Sequence[int] | None) -> Objective:
        """The objective. counts: training images of each class; groups: a group id of each."""
        from . import losses
        from .train import Objective

        rest: dict[str, Any] = dict(args)
        weights = rest.pop("ce_weight", 1.0), rest.pop("kd_weight", 1.0)
        makers: dict[str, Any] = {
            "kd": losses.KDLoss, "dkd": losses.DKDLoss, "dist": losses.DISTLoss,
            "ltkd": partial(losses.LTKDLoss, groups or ())}  # fmt: skip
        return Objective(self, weights, makers[self.loss](**rest) if self.loss else None, counts)


_ALL = (
    Method("teacher", "Teacher", "cross-entropy on the same long-tailed split"),
    Method("student", "Student alone", "cross-entropy"),
    Method("kd", "KD", "Hinton 2015", "kd",
           {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}),
    Method("dkd", "DKD", "Zhao 2022", "dkd",
           {"ce_weight": 1.0, "kd_weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0},
           warmup=20 / 240),
    Method("dist", "DIST", "Huang 2022", "dist",
           {"ce_weight": 1.0, "kd_weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 4.0}),
    Method("ltkd", "LTKD", "Kim 2026", "ltkd", {**_LTKD, "rebalance": True}),
    Method("kd_ce1", "KD, weights 1 and 1", "KD with the outer weights of LTKD", "kd", _KD1,
           ours=True),
    Method("kd_adjusted", "KD, adjusted teacher", "teacher softmax((z - log pi) / T)", "kd", _KD1,
           adjust="teacher", ours=True),
    Method("balanced_softmax", "Balanced softmax",
           "Ren 2020; logit-adjusted cross-entropy at tau = 1, Menon 2021", balanced=True,
           ours=True),
    Method("balanced_softmax_kd", "Bal. softmax + KD (naive)", "Ren 2020 + plain KD", "kd", _KD1,
           balanced=True, ours=True),
    Method("balanced_softmax_kd_adjusted", "Bal. softmax + KD, adjusted teacher",
           "Ren 2020 + KD in the unbiased space", "kd", _KD1, balanced=True, adjust="teacher",
           ours=True),
    Method("balanced_softmax_kd_biased", "Bal. softmax + KD, biased space",
           "Ren 2020 + KD in the teacher's biased space", "kd", _KD1, balanced=True,
           adjust="student", ours=True),
    Method("balanced_softmax_ltkd", "Bal. softmax + LTKD", "Ren 2020 + Kim 2026", "ltkd",
           {**_LTKD, "rebalance": True}, balanced=True, ours=True),
)  # fmt: skip
METHODS: dict[str, Method] = {method.name: method for method in _ALL}

# The ablation's cells, by the names of paper/ablations.csv; "baseline" is vanilla KD [inferred].
ABLATIONS: dict[str, tuple[str, Args]] = {
    "baseline": ("kd", {}),
    "cross_biased": ("ltkd", {"beta": 0.0, "rebalance": False}),
    "cross_rebalanced": ("ltkd", {"beta": 0.0}),
    "within_only": ("ltkd", {"alpha": 0.0}),
    "cross_and_within": ("ltkd", {}),
}
