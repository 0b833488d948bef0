"""Long-tailed data sets as uint8 tensors, augmentation as an index into a finite set of views."""

from .longtail import LongTailed, fingerprint, load, long_tailed_counts, long_tailed_indices, stream
from .sources import DataError, prepare
from .views import Views

__all__ = ["DataError", "LongTailed", "Views", "fingerprint", "load", "long_tailed_counts",
           "long_tailed_indices", "prepare", "stream"]  # fmt: skip
