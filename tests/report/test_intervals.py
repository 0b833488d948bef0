"""The intervals against closed forms and numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ltkd.report import intervals, tables
from ltkd.report.intervals import Interval, verdict


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.30265, half-width 4.30265 / sqrt(3).
    found = intervals.t_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, abs=1e-4)


def test_a_prediction_is_for_new_seeds():
    # As above, and m = 3 new seeds scatter as much again: half-width 4.30265 sqrt(1/3 + 1/3).
    found = intervals.prediction([1.0, 2.0, 3.0], 3)
    assert found.high - found.mean == pytest.approx(4.30265 * (2 / 3) ** 0.5, abs=1e-4)
    one = intervals.prediction([1.0, 2.0, 3.0], 1)  # a single new seed: sqrt(1/3 + 1)
    assert one.high - one.mean == pytest.approx(4.96827, abs=1e-4)
    equal = intervals.prediction([2.0, 2.0, 2.0], 3)
    assert equal.mean == 2
    assert np.isnan([equal.low, equal.high]).all()


def test_t_interval_against_scipy():
    x = np.random.default_rng(0).normal(50, 3, 7)
    expected = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    found = intervals.t_interval(x)
    np.testing.assert_allclose([found.low, found.high], expected)


def test_one_value_has_no_interval_and_says_so():
    one = intervals.t_interval([51.0])
    assert np.isnan([one.low, one.high]).all()
    assert one.plus_minus() == "51.0 (1)"
    assert one.difference() == "+51.0 (no interval)"
    assert verdict(one) == "not resolved"
    assert intervals.t_interval([np.nan]).plus_minus() == "—"


def test_missing_values_do_not_count():
    assert intervals.t_interval([1.0, np.nan, 3.0]) == intervals.t_interval([1.0, 3.0])


def test_strings():
    assert Interval(51.08, 50.78, 51.38, 5).plus_minus() == "51.1 ± 0.3 (5)"
    assert Interval(51.08, 50.78, 51.38, 5).plus_minus(2) == "51.08 ± 0.30 (5)"
    assert Interval(46.9, 46.9, 46.9, 2).plus_minus() == "46.9 (2, equal)"
    assert Interval(-2.1, -3.9, -0.3, 5).difference() == "−2.1 [−3.9, −0.3]"
    assert Interval(-2.1, -2.1, -2.1, 2).difference() == "−2.1 (2, equal)"
    assert Interval(-2.1, n=1).difference() == "−2.1 (no interval)"
    assert tables.minus("LTKD", "KD, prior removed") == "LTKD − (KD, prior removed)"


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 2, None, "confirmed"), (-2, -0.1, None, "contradicted"),
        (-0.1, 2, None, "not resolved"), (0.0, 2, None, "not resolved"),
        (-0.9, 0.9, 1.0, "confirmed"), (1.1, 3, 1.0, "contradicted"),
        (-3, -1.1, 1.0, "contradicted"), (0.5, 1.5, 1.0, "not resolved"),
    ],
)  # fmt: skip
def test_verdicts(low, high, margin, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), margin) == expected


@pytest.mark.parametrize("margin", [None, 1.0])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.7, -1.7])
def test_seeds_that_are_all_equal_prove_nothing(value, margin):
    gap = intervals.t_interval([value] * 3)
    assert gap.side == "not resolved"
    assert verdict(gap, margin) == "not resolved"


def test_bootstrap_against_the_binomial():
    # One class of 400 images, 80 % right: standard error sqrt(0.8 * 0.2 / 400) = 2 points.
    scores = np.repeat([1.0, 0.0], [320, 80])
    found = intervals.bootstrap(scores, np.zeros(400, int), np.zeros(1, int), draws=4000)
    all_ = tables.interval_of(found, metric="all")
    assert all_.mean == pytest.approx(80)
    assert (all_.high - all_.low) / 2 == pytest.approx(1.96 * 2, rel=0.08)
    assert list(found["metric"]) == ["all", "head"]  # a group without classes has no row


def test_bootstrap_means_over_classes_not_images():
    # Two head classes of 10 and 30 images, all right and all wrong: 50 % by class, 25 % by image.
    labels = np.repeat([0, 1], [10, 30])
    found = intervals.bootstrap((labels == 0) * 1.0, labels, np.zeros(2, int), draws=50)
    assert tables.interval_of(found, metric="head").mean == pytest.approx(50)
    assert tables.interval_of(found, metric="all").mean == pytest.approx(25)


def test_bootstrap_is_deterministic():
    labels, scores = np.arange(30) % 3, np.arange(30) % 2
    first, second = (intervals.bootstrap(scores, labels, np.arange(3), draws=20) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
