"""How long a call may take, and when a part of it is tried again; nothing in here sleeps."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Any

from latentry.contract.errors import (
    BadRequest,
    Busy,
    Draining,
    LatentryError,
    ServerGone,
    TimedOut,
)
from latentry.contract.values.arrays import number, shown

# The same request will do later: it is seeded, so a second answer equals the first.
RETRIED = (Busy, Draining, ServerGone)

_FIRST_DELAY_S = 0.2
_MAX_DELAY_S = 0.5
_HEALTH_S = 10.0


class Unset(Enum):
    """Type of :data:`UNSET`."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return self.value


UNSET = Unset.UNSET
"""An argument that was not given, where None means "no limit"."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again.

    Attributes:
        window_s: No attempt starts later than this after the first failure.
        max_attempts: No more attempts than this; None for as many as fit in the window.
    """

    window_s: float = 0.8
    max_attempts: int | None = 3

    def delay_s(self, failures: int, elapsed_s: float, jitter: float) -> float | None:
        """Return the seconds to wait before the next attempt, or None to give up.

        Args:
            failures: Attempts that failed, from 1.
            elapsed_s: Seconds since the first failure.
            jitter: A random number in [0, 1), so that clients do not come back all at once.
        """
        if self.max_attempts is not None and failures >= self.max_attempts:
            return None
        if elapsed_s >= self.window_s:
            return None
        backoff_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures - 1, 8))
        return min(backoff_s * (0.5 + jitter / 2), self.window_s - elapsed_s)


def policy_from_retry_for_s(retry_for_s: float | None) -> RetryPolicy:
    """Return the policy that a client's ``retry_for_s`` asks for; None is the default policy.

    Raises:
        BadRequest: It is no finite number from 0.
    """
    if retry_for_s is None:
        return RetryPolicy()
    return RetryPolicy(window_s=_seconds("retry_for_s", retry_for_s), max_attempts=None)


class Deadline:
    """The moment at which a caller stops waiting."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = None if timeout_s is None else _seconds("timeout_s", timeout_s)
        self._end_s = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s

    def left_s(self) -> float | None:
        """Return the seconds left, not below 0; None without a limit."""
        if self._timeout_s is None:
            return None
        return max(0.0, self._end_s - time.monotonic())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have the questions in the block keep it: see :func:`time_for_question`."""
        token = _KEPT.set(self)
        try:
            yield
        finally:
            _KEPT.reset(token)

    def error(self) -> TimedOut:
        """Return the error for a caller whose time is up."""
        return TimedOut(
            f"no answer within timeout_s={self._timeout_s:g}; the server may still be at work on "
            "it. Give a longer timeout_s (None for no limit) or ask for fewer samples"
        )


# Not an argument of the transports' questions: theirs is a public protocol without one.
_KEPT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def time_for_question(most_s: float) -> float:
    """Return the seconds that a question may take: ``most_s``, or less near a kept deadline."""
    deadline = _KEPT.get()
    left_s = None if deadline is None else deadline.left_s()
    return most_s if left_s is None else min(most_s, left_s)


def health_deadline(timeout_s: float | None) -> Deadline:
    """Return the deadline of a question whether a server is well: soon, or no answer is one."""
    return Deadline(_HEALTH_S if timeout_s is None else min(timeout_s, _HEALTH_S))


class Retries:
    """The failures of one piece of work, and whether it is tried again."""

    def __init__(self, policy: RetryPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        self._failures = 0
        self._first_failure_s = 0.0

    def delay_s(self, error: LatentryError) -> float:
        """Count a failure and return the seconds to wait before the next attempt.

        Raises:
            LatentryError: ``error`` itself, when there is no next attempt.
        """
        now_s = time.monotonic()
        if not self._failures:
            self._first_failure_s = now_s
        self._failures += 1
        elapsed_s = now_s - self._first_failure_s
        delay_s = self._policy.delay_s(self._failures, elapsed_s, random.random())
        left_s = self._deadline.left_s()
        if delay_s is None or (left_s is not None and delay_s >= left_s):
            raise error
        return delay_s


def _seconds(name: str, value: Any) -> float:
    allowed = "a number of seconds from 0, or None"
    try:
        seconds = number(name, value, allowed)
    except BadRequest:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise BadRequest(f"{name}={shown(value)}; it takes {allowed}")
    return seconds
