"""ltkd: what is the best use of a teacher that was trained on long-tailed data?

The public names are loaded on first use, so that a mistake in a parameter file is reported
without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "LTKDLoss": "ltkd.losses",
    "decompose": "ltkd.losses",
    "Decomposition": "ltkd.losses",
    "class_groups": "ltkd.groups",
    "threshold_groups": "ltkd.groups",
    "RunSpec": "ltkd.params",
    "StudyParameters": "ltkd.params",
    "RunRecord": "ltkd.runs",
    "run": "ltkd.runs",
    "Study": "ltkd.study",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604

if TYPE_CHECKING:
    from .groups import class_groups, threshold_groups
    from .losses import Decomposition, LTKDLoss, decompose
    from .params import RunSpec, StudyParameters
    from .runs import RunRecord, run
    from .study import Study


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ltkd' has no attribute {name!r}")
