import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentry.profiling.estimates import (
    discoveries,
    mean_estimate,
    median_estimate,
    needed_samples,
    percentile_estimate,
    permutation_p,
)

FIGURES = st.floats(0.1, 1e4)


@pytest.mark.parametrize(
    ("percent", "needed"), [(50, 20), (90, 100), (95, 200), (99, 1000), (99.9, 10_000)]
)
def test_ten_samples_must_lie_beyond_a_percentile(percent: float, needed: int) -> None:
    assert needed_samples(percent) == needed


def test_too_few_samples_give_a_reason_instead_of_a_figure() -> None:
    estimate = percentile_estimate([np.ones(400), np.ones(240)], 99)
    assert estimate.value is None
    assert estimate.why == "p99 needs 1000 samples, there are 640; measure 1.7 times as long"
    assert percentile_estimate([], 50).why == "p50 needs 20 samples, there are 0"


def test_an_interval_of_a_mean_is_students() -> None:
    # Ten values with mean 10 and standard deviation 1: t(9) = 2.262.
    values = 10 + np.array([-1, 1] * 5) * math.sqrt(0.9)
    estimate = mean_estimate(values.tolist())
    assert estimate.value == pytest.approx(10)
    assert estimate.high == pytest.approx(10 + 2.262 / math.sqrt(10), rel=1e-3)
    assert mean_estimate([3.0]).low is None


@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (5, 2.776), (31, 2.042), (121, 1.980)])
def test_the_quantile_is_that_of_as_many_windows(count: int, t: float) -> None:
    # From any table of Student's t, 97.5 %, with one degree of freedom less.
    values = np.arange(count, dtype=float)
    estimate = mean_estimate(values.tolist())
    assert estimate.high is not None
    assert estimate.low is not None
    error = values.std(ddof=1) / math.sqrt(count)
    assert (estimate.high - estimate.low) / 2 / error == pytest.approx(t, abs=5e-4)


def test_the_interval_of_a_median_lies_between_two_of_its_values() -> None:
    # 1.96 standard deviations of the binomial are 1.96 * sqrt(n) / 2 places from the middle.
    estimate = median_estimate([*range(1, 101)])
    assert (estimate.low, estimate.value, estimate.high) == (40, 50.5, 61)
    few = median_estimate([5.0, 1.0, 3.0, 2.0, 4.0, 7.0, 6.0])
    assert (few.low, few.value, few.high) == (1, 4, 7)
    assert few.windows == (5, 1, 3, 2, 4, 7, 6)
    assert median_estimate([]).why == mean_estimate([]).why == "nothing was measured"


def test_the_interval_of_a_percentile_covers_two() -> None:
    # One window: between the order statistics at 5000 ± 1.96 * sqrt(10000 / 4).
    alone = percentile_estimate([np.arange(10_000.0)], 50)
    assert (alone.low, alone.value, alone.high) == (4901, 4999.5, 5098)
    # Windows far apart: Student's over 50 ± 49 and so on, t(3) = 3.182, from zero on.
    windows = [np.full(5000, value) for value in (1.0, 2.0, 98.0, 99.0)]
    apart = percentile_estimate(windows, 50)
    assert apart.value == pytest.approx(50)
    assert apart.low == 0
    error = np.std([1, 2, 98, 99], ddof=1) / 2
    assert apart.high == pytest.approx(50 + 3.182 * error, rel=1e-3)
    assert apart.windows == (1, 2, 98, 99)
    # The fewest that are enough, whose interval would go beyond the samples.
    few = percentile_estimate([np.arange(1.0, 21.0)], 50)
    assert (few.low, few.high) == (5, 16)
    assert percentile_estimate([np.arange(1.0, 20.0)], 50).value is None
    top = percentile_estimate([np.arange(200.0)], 95)
    assert (top.low, top.high) == (182, 197)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    truth = -math.log(1 - 0.95)
    covered = 0
    for _ in range(300):
        windows = [random.exponential(size=150) for _ in range(6)]
        estimate = percentile_estimate(windows, 95)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 0.95 * 300


@given(st.lists(FIGURES, min_size=1, max_size=30))
def test_a_figure_lies_in_its_interval(values: list[float]) -> None:
    for estimate in (mean_estimate(values), median_estimate(values)):
        assert estimate.value is not None
        if estimate.low is not None and estimate.high is not None:
            slack = 1e-9 * estimate.value
            assert estimate.low - slack <= estimate.value <= estimate.high + slack


@given(st.lists(st.lists(FIGURES, min_size=60, max_size=80), min_size=1, max_size=4))
def test_a_percentile_lies_in_its_interval(windows: list[list[float]]) -> None:
    estimate = percentile_estimate([np.array(window) for window in windows], 50)
    assert estimate.low is not None
    assert estimate.value is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high


@settings(max_examples=30, deadline=None)
@given(st.lists(FIGURES, min_size=2, max_size=6), st.lists(FIGURES, min_size=2, max_size=6))
def test_a_p_value_is_a_share_and_symmetric(first: list[float], second: list[float]) -> None:
    p_value = permutation_p(first, second)
    assert 0 < p_value <= 1
    assert p_value == pytest.approx(permutation_p(second, first))


def test_windows_apart_are_significant_and_equal_ones_are_not() -> None:
    low, high = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02], [2.0, 2.1, 1.9, 2.05, 1.95, 2.02]
    # Of the C(12, 6) = 924 ways to divide, two are as far apart.
    assert permutation_p(low, high) == pytest.approx(2 / 924)
    assert permutation_p(low, low) == 1.0
    assert permutation_p([], [1.0]) == 1.0


def test_many_windows_are_compared_by_random_permutations() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(0, 1, 20), random.normal(1.5, 1, 20)
    assert permutation_p(first.tolist(), second.tolist()) < 0.01
    assert permutation_p(first.tolist(), random.normal(0, 1, 20).tolist()) > 0.01


def test_false_discoveries_are_kept_down() -> None:
    # The example of Benjamini and Hochberg (1995), section 3.1: four of fifteen at 5 %.
    p_values = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
    ]
    assert discoveries(p_values) == [True] * 4 + [False] * 11
    assert discoveries([]) == []
