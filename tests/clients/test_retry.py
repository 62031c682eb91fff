import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.clients import BadRequest, ServerGone
from latentry.clients.retry import (
    UNSET,
    Deadline,
    Retries,
    RetryPolicy,
    policy_from_retry_for_s,
)

JITTER = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), st.floats(0, 100), JITTER)
def test_delays_are_short_and_stay_in_the_window(
    failures: int, elapsed_s: float, jitter: float
) -> None:
    policy = RetryPolicy(window_s=30.0, max_attempts=None)
    delay_s = policy.delay_s(failures, elapsed_s, jitter)
    assert (delay_s is None) == (elapsed_s >= 30)
    if delay_s is not None:
        assert 0 < delay_s <= 0.5
        assert elapsed_s + delay_s <= 30 * (1 + 1e-9)


@given(JITTER, JITTER)
def test_by_default_there_are_three_attempts_within_0_8_s(first: float, second: float) -> None:
    policy = policy_from_retry_for_s(None)
    one = policy.delay_s(1, 0.0, first)
    assert one is not None
    two = policy.delay_s(2, one, second)
    assert two is not None
    assert one + two <= 0.8
    assert policy.delay_s(3, one + two, first) is None


def test_no_time_means_no_second_attempt() -> None:
    assert policy_from_retry_for_s(0).delay_s(1, 0.0, 0.5) is None


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", True, [1.0], np.ones((1, 1))])
def test_seconds_that_are_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="retry_for_s=.* it takes a number of seconds"):
        policy_from_retry_for_s(value)
    with pytest.raises(BadRequest, match="timeout_s=.* it takes a number of seconds"):
        Deadline(value)


def test_retries_give_up_with_the_error_itself() -> None:
    retries = Retries(RetryPolicy(), Deadline(None))
    gone = ServerGone("gone")
    assert retries.delay_s(gone) > 0
    assert retries.delay_s(gone) > 0
    with pytest.raises(ServerGone, match="gone"):
        retries.delay_s(gone)


def test_nothing_is_tried_again_when_the_callers_time_would_be_up() -> None:
    with pytest.raises(ServerGone, match="gone"):
        Retries(RetryPolicy(), Deadline(0.01)).delay_s(ServerGone("gone"))


def test_a_deadline_without_a_limit() -> None:
    assert Deadline(None).left_s() is None
    assert Deadline(0).left_s() == 0
    assert repr(UNSET) == "UNSET"


@pytest.mark.parametrize("seconds", [np.float32(0.5), np.int64(3), np.array(2.0), Fraction(1, 2)])
def test_seconds_of_any_library(seconds: Any) -> None:
    left_s = Deadline(seconds).left_s()
    assert left_s is not None
    assert left_s <= 3
    assert policy_from_retry_for_s(seconds).window_s == float(seconds)
