"""Class groups against the group sizes that the method's text states, and a literal rank loop."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from ltkd.groups import class_groups, threshold_groups


def profile(classes: int, n_max: int = 500, gamma: float = 100) -> list[int]:
    return [int(n_max * (1 / gamma) ** (c / (classes - 1))) for c in range(classes)]


@pytest.mark.parametrize(
    ("classes", "sizes"), [(10, [3, 4, 3]), (100, [33, 34, 33]), (200, [67, 66, 67])]
)
def test_default_sizes(classes: int, sizes: list[int]) -> None:
    groups = class_groups(profile(classes))
    assert groups.dtype == torch.int64
    assert groups.bincount().tolist() == sizes
    assert (groups.diff() >= 0).all(), "counts descend with the label, so groups ascend"


@pytest.mark.parametrize("classes", [1, 2, 7, 10, 100])
def test_every_n_matches_a_literal_loop_over_ranks(classes: int) -> None:
    torch.manual_seed(classes)
    counts = torch.randint(0, 20, (classes,))  # many ties
    ranked = sorted(range(classes), key=lambda c: (-int(counts[c]), c))
    for n in range(1, classes + 1):
        expected = [-1] * classes
        for k in range(n):
            start = (2 * k * classes + n) // (2 * n)
            stop = (2 * (k + 1) * classes + n) // (2 * n)
            for rank in range(start, stop):
                expected[ranked[rank]] = k
        groups = class_groups(counts, n)
        assert groups.tolist() == expected
        sizes = groups.bincount(minlength=n)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.min() >= 1


def test_torchs_default_device_does_not_matter() -> None:
    with torch.device("meta"):  # as with cuda, what is made in passing lies elsewhere
        groups = class_groups([5, 3, 1])
    assert groups.tolist() == [0, 1, 2]


def test_ties_go_by_label_and_order_of_labels_does_not_matter_otherwise() -> None:
    assert class_groups([5, 5, 9, 1], 4).tolist() == [1, 2, 0, 3]
    assert class_groups([1, 2, 3], 3).tolist() == [2, 1, 0]
    assert class_groups([7] * 6).tolist() == [0, 0, 1, 1, 2, 2]


def test_thresholds_keep_their_ids_where_a_group_is_empty() -> None:
    assert threshold_groups([500, 101, 100, 50, 20, 19, 0]).tolist() == [0, 0, 1, 1, 1, 2, 2]
    # At gamma 10 the rarest class holds 50 images: no tail, yet the others keep their ids.
    assert threshold_groups(profile(100, gamma=10)).unique().tolist() == [0, 1]
    assert threshold_groups([19, 3]).tolist() == [2, 2]
    assert threshold_groups([5, 4, 3], many=4, few=4).tolist() == [0, 1, 2]


def test_sequences_tensors_and_dtypes_agree() -> None:
    counts = profile(10)
    for other in (tuple(counts), torch.tensor(counts), torch.tensor(counts, dtype=torch.int32)):
        assert torch.equal(class_groups(other), class_groups(counts))
        assert torch.equal(threshold_groups(other), threshold_groups(counts))
    for n in np.arange(1, 4):
        assert torch.equal(class_groups(counts, n), class_groups(counts, int(n)))


def test_a_series_counts_in_label_order_or_is_refused() -> None:
    labels = pd.Series([2, 2, 2, 0, 1, 1])
    by_label = labels.value_counts().sort_index()
    assert class_groups(by_label, 3).tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match=r"counts is a Series with label 2 out of .*label order"):
        class_groups(labels.value_counts())  # by frequency: the first is class 2


@pytest.mark.parametrize("n", [0, -1, 4, 1.5, True])
def test_n_groups_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match=r"n_groups is .*from 1 to the 3 classes"):
        class_groups([3, 2, 1], n)


@pytest.mark.parametrize("function", [class_groups, threshold_groups])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -2, 1], r"counts\[1\] is -2"),
        ([], "counts has shape"),
        ([[1, 2], [3, 4]], "counts has shape"),
        ([1.5, 2.0], "counts is torch.float32"),
        ([True, False], "counts is torch.bool"),
        (Counter("aab"), "counts is a Counter; it must be whole numbers"),
        (None, "counts is a NoneType"),
        ([3, None], "counts is a list"),
    ],
)
def test_bad_counts(function, counts, message) -> None:
    with pytest.raises(ValueError, match=message):
        function(counts)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_counts_are_counts(kind) -> None:
    counts = np.array([3, 200, 5], dtype=kind)
    assert class_groups(counts).tolist() == [2, 0, 1]
    assert threshold_groups(counts).tolist() == [2, 0, 2]


@pytest.mark.parametrize(("many", "few"), [(10, 20), (5, -1), ("100", 20), (100, None)])
def test_bad_thresholds(many, few) -> None:
    with pytest.raises(ValueError, match=f"many is {many!r} and few is {few!r}"):
        threshold_groups([1, 2], many, few)
