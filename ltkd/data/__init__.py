"""Long-tailed data sets as uint8 tensors, augmentation as an index into a finite set of views."""

from .longtail import (
    Feed,
    LongTailed,
    Size,
    fingerprint,
    load,
    long_tailed_counts,
    long_tailed_indices,
    resolve,
    size_of,
    stream,
)
from .sources import DataError, prepare
from .views import Views

__all__ = ["DataError", "Feed", "LongTailed", "Size", "Views", "fingerprint", "load",
           "long_tailed_counts", "long_tailed_indices", "prepare", "resolve", "size_of",
           "stream"]  # fmt: skip
