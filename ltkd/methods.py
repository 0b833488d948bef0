"""The methods a student can be trained with, each a line of data and one formula:

    ce_weight * CE(z_S + l, y)  +  ramp(epoch) * kd_weight * D(z_S + s, z_T - t)

D is one of the losses in ``ltkd.losses``. The shifts l, s, t are zero or the log of the training
class counts (or frequencies: the constant cancels). ``ltkd.objective`` makes a module of it; here
are names and numbers alone, without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Args = Mapping[str, float | bool]
_LTKD: Args = {"ce_weight": 1.0, "kd_weight": 1.0, "alpha": 1.0, "beta": 1.0, "temperature": 4.0}
_KD1: Args = {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 4.0}


@dataclass(frozen=True)
class Method:
    """One way to train a student.

    name       in parameter files and records; label: in tables; reference: where it is from
    loss       the distillation term, None for a student without a teacher
    args       its arguments and outer weights, with the field's defaults
    balanced   the label's loss is CE(z + log n): balanced softmax (Ren 2020), the same loss as
               logit-adjusted cross-entropy at tau = 1 (Menon 2021)
    adjust     where the class prior enters the distillation: "teacher" distils
               softmax((z_T - log pi) / T), "student" compares the raw teacher with z_S + log pi
    by_pair    arguments that differ for a pair, by "teacher-student"; any pair that is not named
               takes the defaults [inferred]
    ours       a rival that the paper does not have

    Among the arguments, ce_weight and kd_weight are the outer weights, and warmup is the fraction
    of the schedule over which the distillation term rises to its weight.
    """

    name: str
    label: str
    reference: str
    loss: Literal["kd", "ltkd", "dkd", "dist", "catkd", "reviewkd"] | None = None
    args: Args = field(default_factory=dict)
    by_pair: Mapping[str, Args] = field(default_factory=dict)
    balanced: bool = False
    adjust: Literal["", "teacher", "student"] = ""
    ours: bool = False

    def defaults(self, teacher: str | None, student: str | None) -> dict[str, Any]:
        """The arguments for a pair, by network names."""
        return {**self.args, **self.by_pair.get(f"{teacher}-{student}", {})}

    @property
    def uses_groups(self) -> bool:
        return self.loss == "ltkd"


_VGG, _WRN = "vgg13-vgg8", "wrn_40_2-wrn_40_1"
_R32_SV1, _VGG_MV2 = "resnet32x4-shufflenetv1", "vgg13-mobilenetv2"
_WRN_SV1, _R50_MV2 = "wrn_40_2-shufflenetv1", "resnet50-mobilenetv2"
_R34, _R50 = "resnet34_imagenet-resnet18_imagenet", "resnet50_imagenet-mobilenetv1"
_CE1: Args = {"ce_weight": 1.0, "kd_weight": 1.0}
_RAMP = 20 / 240  # the first 20 of 240 epochs; none on ImageNet


def _cat(beta: float, pool: float, normalize: bool) -> Args:
    return {"beta": beta, "pool": pool, "normalize": normalize}


# Values from the methods' official code; for Tiny ImageNet none are published, and CIFAR's are
# used [inferred]. ReviewKD's weight is published for the ResNet and WRN pairs, told by a maintainer
# for VGG13-VGG8 and inferred for the two MobileNetV2 pairs.
_ALL = (
    Method("teacher", "Teacher", "cross-entropy on the same long-tailed split"),
    Method("student", "Student alone", "cross-entropy"),
    Method("kd", "KD", "Hinton 2015", "kd",
           {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0},
           {pair: {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0}
            for pair in (_R34, _R50)}),
    Method("dkd", "DKD", "Zhao 2022", "dkd",
           {**_CE1, "warmup": _RAMP, "alpha": 1.0, "beta": 8.0, "temperature": 4.0},
           {_VGG: {"beta": 6.0}, _VGG_MV2: {"beta": 6.0}, _WRN: {"beta": 6.0},
            _R34: {"warmup": 0.0, "beta": 0.5, "temperature": 1.0},
            _R50: {"warmup": 0.0, "beta": 2.0, "temperature": 1.0}}),
    Method("reviewkd", "ReviewKD", "Chen 2021", "reviewkd",
           {"ce_weight": 1.0, "kd_weight": 5.0, "warmup": _RAMP},
           {_R34: {"warmup": 0.0, "kd_weight": 1.0}, _R50: {"warmup": 0.0, "kd_weight": 8.0}}),
    Method("dist", "DIST", "Huang 2022", "dist",
           {**_CE1, "beta": 2.0, "gamma": 2.0, "temperature": 4.0},
           {_R34: {"temperature": 1.0}, _R50: {"temperature": 1.0}}),
    Method("catkd", "CAT-KD", "Guo 2023", "catkd", {**_CE1, **_cat(15.0, 2.0, False)},
           {_R32_SV1: _cat(600.0, 4.0, True), _VGG: _cat(4.5, 2.0, False),
            _VGG_MV2: _cat(15.0, 2.0, True), _WRN: _cat(1.5, 2.0, False),
            _WRN_SV1: _cat(80.0, 4.0, True), _R50_MV2: _cat(40.0, 2.0, True),
            _R34: _cat(0.5, 4.0, False), _R50: _cat(10.0, 2.0, True)}),
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
    "cross_rebalanced": ("ltkd", {"beta": 0.0, "rebalance": True}),
    "within_only": ("ltkd", {"alpha": 0.0}),
    "cross_and_within": ("ltkd", {"rebalance": True}),
}
