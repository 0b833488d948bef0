"""Distillation losses. Each is the distillation term alone; cross-entropy belongs to the recipe."""

from typing import Any, Literal, NamedTuple

from ltkd.losses.catkd import CATKDLoss
from ltkd.losses.decomposition import Decomposition, decompose
from ltkd.losses.dist import DISTLoss
from ltkd.losses.dkd import DKDLoss
from ltkd.losses.kd import KDLoss
from ltkd.losses.ltkd import LTKDLoss
from ltkd.losses.reviewkd import ReviewKDLoss

Compared = Literal["logits", "maps", "features"]


class Entry(NamedTuple):
    """A loss, what of the two networks it compares, and whether it needs the labels as well."""

    loss: Any
    compares: Compared = "logits"
    targets: bool = False


# One line a loss: the losses that ltkd.methods can name. Beyond this line and its entry there, a
# loss that looks across the batch or takes groups is built by objective.build, one whose parameters
# depend on the networks by train.initial_objective, and params names one that has no table.
LOSSES = {
    "kd": Entry(KDLoss),
    "dkd": Entry(DKDLoss, targets=True),
    "reviewkd": Entry(ReviewKDLoss, "features"),
    "dist": Entry(DISTLoss),
    "catkd": Entry(CATKDLoss, "maps"),
    "ltkd": Entry(LTKDLoss),
}

__all__ = [
    "LOSSES",
    "CATKDLoss",
    "Compared",
    "DISTLoss",
    "DKDLoss",
    "Decomposition",
    "Entry",
    "KDLoss",
    "LTKDLoss",
    "ReviewKDLoss",
    "decompose",
]
