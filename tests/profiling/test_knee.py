import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.profiling.estimates import Estimate
from latentry.profiling.knee import find_knee
from latentry.profiling.points import Point


def callers(value: int, throughput: float, mean_ms: float = 1.0) -> Point:
    return Point(
        kind="concurrency",
        value=value,
        throughput=Estimate(value=throughput),
        mean_ms=Estimate(value=mean_ms),
    )


@given(limit=st.integers(2, 16), rate=st.floats(1, 1e4))
def test_the_knee_is_where_throughput_stops_growing(limit: int, rate: float) -> None:
    points = [callers(n, rate * min(n, limit)) for n in range(1, 33)]
    knee = find_knee(points)
    assert knee is not None
    assert knee.concurrency == limit
    assert knee.throughput == pytest.approx(rate * limit)
    assert knee.mean_ms == 1.0


@given(rate=st.floats(1, 1e4))
def test_throughput_that_grows_all_along_has_no_knee(rate: float) -> None:
    assert find_knee([callers(n, rate * n) for n in (1, 2, 4, 8)]) is None
    assert find_knee([callers(n, rate) for n in (1, 2, 4, 8)]) is None
    assert find_knee([callers(1, rate), callers(8, 2 * rate)]) is None


def test_the_knee_is_where_the_curve_is_highest_above_the_diagonal() -> None:
    points = [callers(n, rate, 10.0 * n) for n, rate in ((1, 100), (2, 180), (4, 240), (5, 200))]
    # Brought to 0 .. 1: 0, 0.57, 1, 0.71 of the throughput at 0, 0.25, 0.75, 1 of the callers.
    knee = find_knee([*points, Point(kind="batch", value=9), Point(kind="concurrency", value=8)])
    assert knee is not None
    assert (knee.concurrency, knee.throughput, knee.mean_ms) == (2, 180, 20)
    assert knee.height == pytest.approx(80 / 140 - 0.25)
