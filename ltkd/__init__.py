"""ltkd: what is the best use of a teacher that was trained on long-tailed data?

The public names are loaded on first use, so that a mistake in a parameter file is reported
without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adjust import adjust_logits as adjust_logits
    from .adjust import fit_tau as fit_tau
    from .groups import class_groups as class_groups
    from .groups import threshold_groups as threshold_groups
    from .losses import Decomposition as Decomposition
    from .losses import LTKDLoss as LTKDLoss
    from .losses import decompose as decompose
    from .params import RunSpec as RunSpec
    from .params import StudyParameters as StudyParameters
    from .runs import RunRecord as RunRecord
    from .runs import load_model as load_model
    from .runs import run as run
    from .study import Study as Study

_HOME = {
    "adjust": ("adjust_logits", "fit_tau"),
    "groups": ("class_groups", "threshold_groups"),
    "losses": ("Decomposition", "LTKDLoss", "decompose"),
    "params": ("RunSpec", "StudyParameters"),
    "runs": ("RunRecord", "load_model", "run"),
    "study": ("Study",),
}


def __getattr__(name: str) -> Any:
    if name in ("data", "losses", "models"):
        return import_module(f"ltkd.{name}")
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"ltkd.{module}"), name)
    raise AttributeError(f"module 'ltkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(name for names in _HOME.values() for name in names)])
