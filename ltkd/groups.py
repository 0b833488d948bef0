"""Class groups, head first, from the number of training images of each class."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

GROUPS = ("head", "medium", "tail")  # of the three default groups


def class_groups(counts: Sequence[int] | Tensor, n_groups: int = 3) -> Tensor:
    """Groups of near-equal size by rank: group k starts at rank floor((2 k C + n) / (2 n)).

    counts    [C] images of each class in the training set actually used, whole numbers >= 0
    n_groups  n, from 1 (one group) to C (every class its own)
    returns   [C] int64 group of each class, 0 = head; ranks descend by count, ties by label

    Sizes differ by at most one: 100 classes in 3 groups are 33, 34 and 33. Raises ValueError, which
    names the argument, for anything else.
    """
    counts = whole_numbers("counts", counts).cpu()
    c = len(counts)
    if not isinstance(n_groups, Integral) or isinstance(n_groups, bool) or not 1 <= n_groups <= c:
        raise ValueError(
            f"n_groups is {n_groups!r}; it must be a whole number from 1 to the {c} classes"
        )
    n = int(n_groups)
    # On the processor, as the counts are, whatever torch's default device is.
    starts = torch.tensor(
        [(2 * k * c + n) // (2 * n) for k in range(1, n)], dtype=torch.int64, device="cpu"
    )
    by_rank = torch.bucketize(torch.arange(c, device="cpu"), starts, right=True)
    return torch.empty_like(by_rank).scatter_(
        0, torch.argsort(counts, descending=True, stable=True), by_rank
    )


def threshold_groups(counts: Sequence[int] | Tensor, many: int = 100, few: int = 20) -> Tensor:
    """Groups by absolute count: 0 where count > many, 1 where few..many, 2 where count < few.

    counts   [C] images of each class, whole numbers >= 0
    returns  [C] int64; the ids stay 0, 1, 2 even where one of them owns no class
    Raises ValueError, which names the argument, for anything else, or unless 0 <= few <= many.
    """
    counts = whole_numbers("counts", counts).cpu()
    numbers = isinstance(many, Real) and isinstance(few, Real)
    if not numbers or not 0 <= few <= many:
        raise ValueError(f"many is {many!r} and few is {few!r}; they must satisfy 0 <= few <= many")
    return (counts <= many).long() + (counts < few).long()


def whole_numbers(name: str, values: Sequence[int] | Tensor) -> Tensor:
    """[C] whole numbers >= 0 as int64; ValueError that names the argument.

    A pandas Series is taken in label order: its index must be 0 to C - 1, which that of
    ``value_counts()``, sorted by frequency, is not.
    """
    if hasattr(values, "to_numpy"):
        index = getattr(values, "index", None)
        labels = range(len(values)) if index is None or callable(index) else list(index)
        if wrong := [label for k, label in enumerate(labels) if label != k]:
            raise ValueError(
                f"{name} is a {type(values).__name__} with label {wrong[0]!r} out of its place; "
                "it must be in label order, its index 0 to C - 1"
            )
        values = values.to_numpy().tolist()
    try:  # on the processor, whatever torch's default device is: a meta tensor has no values
        values = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        given = type(values).__name__
        raise ValueError(f"{name} is a {given}; it must be whole numbers, one a class") from None
    if values.dim() != 1 or len(values) == 0:
        raise ValueError(f"{name} has shape {list(values.shape)}; it must be [C] with C >= 1")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} is {values.dtype}; it must hold whole numbers, an integer dtype")
    values = values.long()  # torch has no minimum of unsigned numbers
    if (low := int(values.min())) < 0:
        raise ValueError(f"{name}[{int(values.argmin())}] is {low}; it must be 0 or more")
    return values
