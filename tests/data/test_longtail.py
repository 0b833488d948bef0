"""The long tail's counts against the reported ones, and the cut against what a cut must be."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ltkd.data import (
    DataError,
    load,
    long_tailed_counts,
    long_tailed_indices,
    longtail,
    size_of,
    stream,
)
from ltkd.params import Images

# gamma -> images, and images of head, medium, tail, as reported for CIFAR-100-LT and Tiny ImageNet.
REPORTED = {
    (500, 100, 10.0): (19573, 11638, 5498, 2437),
    (500, 100, 20.0): (15907, 10575, 3955, 1377),
    (500, 100, 100.0): (10847, 8615, 1864, 368),
    (500, 200, 10.0): (39072, 23412, 10658, 5002),
    (500, 200, 20.0): (31711, 21225, 7651, 2835),
    (500, 200, 100.0): (21549, 17186, 3602, 761),
    (1300, 1000, 5.0): (645809,),
    (1300, 1000, 10.0): (507831,),
    (1300, 1000, 20.0): (412030,),
}


@pytest.mark.parametrize(("n_max", "classes", "gamma"), REPORTED)
def test_counts_equal_the_reported_ones(n_max, classes, gamma):
    counts = long_tailed_counts(n_max, classes, gamma)
    total, *groups = REPORTED[n_max, classes, gamma]
    assert int(counts.sum()) == total
    if groups:
        starts = [0, (2 * classes + 3) // 6, (4 * classes + 3) // 6, classes]
        assert [int(counts[a:b].sum()) for a, b in pairwise(starts)] == groups
    assert counts[0] == n_max
    assert int(counts[-1]) in (int(n_max / gamma), int(n_max / gamma) - 1)  # int() of a float power


@pytest.mark.parametrize("gamma", [0.5, 0.0, -1.0, float("nan"), float("inf"), "100"])
def test_gamma_below_one_or_without_an_end_is_refused(gamma):
    with pytest.raises(ValueError, match="at least 1"):
        long_tailed_counts(500, 100, gamma)


def test_the_cut_is_seeded_without_replacement_and_nested():
    labels = np.tile(np.arange(5), 40)
    counts = torch.tensor([40, 20, 10, 5, 1])
    kept = long_tailed_indices(labels, counts, 0)
    assert len(np.unique(kept)) == len(kept) == 76
    assert np.bincount(labels[kept]).tolist() == counts.tolist()
    assert (kept == long_tailed_indices(labels, counts, 0)).all()
    assert not np.array_equal(kept, long_tailed_indices(labels, counts, 1))
    assert (kept == long_tailed_indices(labels.tolist(), counts, 0)).all()
    smaller = long_tailed_indices(labels, torch.tensor([40, 10, 4, 2, 1]), 0)
    assert set(smaller) <= set(kept)


def test_the_cut_takes_any_counts_and_refuses_labels_without_one():
    labels = np.tile(np.arange(5), 40)
    assert len(long_tailed_indices(labels, [40, 20, 10, 5, 1], 0)) == 76
    with torch.device("meta"):  # torch's default device does not matter
        assert long_tailed_counts(10, 2, 5).tolist() == [10, 2]
    with pytest.raises(ValueError, match="counts has 4 classes, but there is a label 4"):
        long_tailed_indices(labels, [40, 20, 10, 5], 0)
    with pytest.raises(ValueError, match=r"counts is torch\.float32"):
        long_tailed_indices(labels, [40.0] * 5, 0)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(ValueError, match="class 1 has 2 images, but 3 are asked for"):
        long_tailed_indices(np.array([0, 0, 1, 1]), torch.tensor([1, 3]), 0)


def test_images_are_held_out_before_the_tail_is_cut():
    whole, tuned = load("digits", 20.0), load("digits", 20.0, holdout=5)
    assert tuned.test_labels.bincount().tolist() == [5] * 10
    every = load("digits", 1.0).train_images  # of the largest balanced set
    smallest = len(every) // 10
    assert tuned.counts.tolist() == long_tailed_counts(smallest - 5, 10, 20.0).tolist()
    assert tuned.title == "Digits-LT, 5 images a class held out"
    seen = {image.numpy().tobytes() for image in tuned.train_images}
    assert not seen & {image.numpy().tobytes() for image in tuned.test_images}
    test = {image.numpy().tobytes() for image in whole.test_images}
    assert not test & ({image.numpy().tobytes() for image in tuned.test_images} | seen)
    other = load("digits", 20.0, split_seed=1, holdout=5)
    assert not torch.equal(other.test_images, tuned.test_images)
    with pytest.raises(DataError, match=r"holdout = 500: the smallest class has only \d+ images"):
        load("digits", 20.0, holdout=500)


def test_cifar100_is_tuned_on_25_images_a_class(cifar100):
    data = load("cifar100", 100.0, holdout=25)
    assert data.counts.tolist() == long_tailed_counts(475, 100, 100.0).tolist()
    assert data.test_labels.bincount().tolist() == [25] * 100
    assert data.counts.tolist() == size_of("cifar100", 100.0, holdout=25).counts


def test_streams_are_independent_and_platform_stable():
    # RandomState's streams are frozen by numpy: these numbers hold on every platform, for good.
    assert stream("order", 0, 1).permutation(6).tolist() == [4, 5, 0, 1, 2, 3]
    assert stream("views", 0, 1).randint(162, size=4).tolist() == [41, 157, 130, 155]
    assert stream("order", 0, 1).randint(2**31) != stream("views", 0, 1).randint(2**31)


def test_digits_are_balanced_in_the_test_set_and_long_tailed_in_training():
    data = load("digits", 20.0)
    assert len(data.test_labels) == 596
    assert data.test_labels.bincount().tolist() == [59, 60, 59, 61, 60, 60, 60, 59, 58, 60]
    assert data.train_labels.bincount(minlength=10).tolist() == data.counts.tolist()
    assert data.counts.tolist() == [116, 83, 59, 42, 30, 21, 15, 11, 8, 5]
    assert data.train_images.shape == (390, 3, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert data.groups().bincount().tolist() == [3, 4, 3]


def test_training_and_test_images_do_not_overlap():
    data = load("digits", 1.0)
    train = {image.numpy().tobytes() for image in data.train_images}
    test = [image.numpy().tobytes() for image in data.test_images]
    assert not train & set(test)


@pytest.mark.parametrize(("gamma", "total"), [(10.0, 19573), (20.0, 15907), (100.0, 10847)])
def test_cifar100_lt_from_the_official_files(cifar100, gamma, total):
    data = load("cifar100", gamma)
    assert len(data.train_labels) == total == int(data.counts.sum())
    assert data.test_labels.bincount().tolist() == [100] * 100
    assert data.train_labels.bincount(minlength=100).tolist() == data.counts.tolist()
    assert (data.train_images.numpy() == cifar100.train[0][data.indices]).all()


@pytest.mark.parametrize("ask", [load, size_of])
@pytest.mark.parametrize(
    ("name", "images", "message"),
    [("folder", None, "'folder': needs images with folder and size"),
     ("folder", Images(size=64), "'folder': needs images with folder and size"),
     ("digits", Images(folder="birds", size=64), "images belong to tiny_imagenet, .*, not digits"),
     ("cifar100", Images(size=32), "images belong to tiny_imagenet, .*, not cifar100")],
)  # fmt: skip
def test_images_and_the_set_have_to_go_together(ask, name, images, message):
    with pytest.raises(DataError, match=message):
        ask(name, 20.0, images=images)


def test_a_set_is_a_line_in_a_notebook():
    said = "<Digits-LT, gamma 20: 390 training and 596 test images of 10 classes>"
    assert repr(load("digits", 20.0)) == said


def test_an_epoch_at_once_is_what_batches_take(monkeypatch):
    """A GPU's way, in blocks, and the processor's: the same pixels."""
    monkeypatch.setattr(longtail, "BLOCK", 100)
    data = load("digits", 20.0)
    feed, draw = data.feed(torch.device("cpu")), torch.Generator().manual_seed(0)
    view = torch.randint(data.views.count, (390,), generator=draw)
    whole = feed.epoch(view)
    assert (whole.dtype, whole.shape) == (torch.uint8, data.train_images.shape)
    index = torch.randperm(390, generator=draw)
    seen = data.normalise(whole[index], feed.scale)
    assert torch.equal(seen, feed.take(index, view[index]))


def test_normalise_against_the_formula():
    data = load("digits", 20.0)
    x = data.normalise(data.test_images[:3]).double()
    expected = (data.test_images[:3].double() / 255 - data.mean[0]) / data.std[0]
    assert torch.allclose(x, expected, atol=1e-6)
