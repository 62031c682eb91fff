"""How many requests a second a latency target allows.

``p99=50ms`` is held at a rate if the 99th percentile of the latency stays at or below 50 ms while
requests arrive as a Poisson process of that rate, each counted from when it was due, and none
fails. The largest such rate is found by bisection.
"""

from collections.abc import Sequence

from latentry.contract.errors import ServerFault
from latentry.contract.strict import Strict
from latentry.contract.system import time_now
from latentry.profiling.load.schedules import run_closed
from latentry.profiling.load.target import Target
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import (
    WARM_UP_S,
    Probe,
    check_samples,
    least_rate,
    probe_rate,
)

_PRECISION = 0.04  # of the rate
_LEAST_SHARE = 0.02  # of the saturation; below it nothing is looked for
_OUTSTANDING = 64
_SATURATION_S, _SLOW_SATURATION_S = 1.0, 10.0


class Holding(Strict):
    """The answer for one configuration.

    Attributes:
        rate: Largest rate that was tried and held; 0 where none was.
        low: Largest rate at which the whole interval of the percentile was within the limit.
        high: Smallest rate above ``rate`` at which it was beyond; None where no such was tried.
        saturation: Requests a second with 64 outstanding, whatever the latency.
        probes: Everything that was tried, in order.
        measured_at: When it was found, UTC.
    """

    rate: float
    low: float
    high: float | None
    saturation: float
    probes: tuple[Probe, ...]
    measured_at: str = ""


def find_held_rate(target: Target, objective: Objective, *, floor: float = 0.0) -> Holding:
    """Find the largest rate at which ``target`` holds ``objective``, by bisection.

    Args:
        target: What is asked.
        objective: What it has to hold.
        floor: A rate that must be held for the search to go on: what another configuration holds.

    Raises:
        BadRequest: The target is too slow for this percentile to be seen within a probe.
        ServerFault: It answers nothing at all.
    """
    saturation = _saturation(target)
    least = least_rate(objective.percent)
    if not floor:
        check_samples(objective, saturation)
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(probe_rate(target, objective, rate, seed=len(probes)))
        return probes[-1].holds(objective.limit_ms)

    low, high = 0.0, max(saturation, 1.0) * 1.05
    if floor and not holds(floor * (1 + _PRECISION)):
        high = low
    elif floor:
        low = floor * (1 + _PRECISION)
        high = max(high, low * 1.1)
    # Below the least rate there are too few requests for an answer, not one that is "no".
    least = max(least, _LEAST_SHARE * saturation)
    while high - max(low, least) > _PRECISION * high:
        middle = max((low + high) / 2, least)
        if holds(middle):
            low = middle
        else:
            high = middle
    return _holding(probes, objective, saturation)


def _saturation(target: Target) -> float:
    """Return the requests a second with 64 outstanding; a slow target is asked for longer."""
    for seconds in (_SATURATION_S, _SLOW_SATURATION_S):
        result = run_closed(
            target, outstanding=_OUTSTANDING, duration_s=seconds, warm_up_s=WARM_UP_S
        )
        if result.completed >= _OUTSTANDING:
            break
        if result.errors and not result.completed:
            raise ServerFault(f"every request failed: {next(iter(result.errors))}")
    return result.throughput


def _holding(probes: Sequence[Probe], objective: Objective, saturation: float) -> Holding:
    limit = objective.limit_ms
    rate = max((probe.rate for probe in probes if probe.holds(limit)), default=0.0)
    sure = [p.rate for p in probes if p.surely_holds(limit)]
    beyond = [p.rate for p in probes if p.surely_fails(limit) and p.rate > rate]
    return Holding(
        rate=rate,
        low=max(sure, default=0.0),
        high=min(beyond, default=None),
        saturation=saturation,
        probes=tuple(probes),
        measured_at=time_now(),
    )
