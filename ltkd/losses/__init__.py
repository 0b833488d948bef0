"""Distillation losses. Each is the distillation term alone; cross-entropy belongs to the recipe."""

from ltkd.losses.catkd import CATKDLoss, class_maps
from ltkd.losses.decomposition import Decomposition, decompose
from ltkd.losses.dist import DISTLoss
from ltkd.losses.dkd import DKDLoss
from ltkd.losses.kd import KDLoss
from ltkd.losses.ltkd import LTKDLoss
from ltkd.losses.reviewkd import ReviewKDLoss

__all__ = [
    "CATKDLoss",
    "DISTLoss",
    "DKDLoss",
    "Decomposition",
    "KDLoss",
    "LTKDLoss",
    "ReviewKDLoss",
    "class_maps",
    "decompose",
]
