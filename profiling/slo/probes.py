"""One rate, tried: whether a latency target is held there."""

from collections.abc import Sequence

import numpy as np

from latentry.contract.errors import BadRequest
from latentry.contract.strict import Strict
from latentry.profiling.estimates import Estimate, needed_samples, percentile_estimate
from latentry.profiling.load.results import LoadResult
from latentry.profiling.load.schedules import run_open
from latentry.profiling.load.target import Target
from latentry.profiling.slo.objective import Objective

LEAST_PROBE_S, MOST_PROBE_S = 1.5, 60.0
WARM_UP_S = 0.5

_PROBE_SAMPLES = 1.25  # of what the percentile needs: the number of arrivals is random
_PROBE_WINDOWS = 4
_SMALLER_PERCENTS = (99.0, 95.0, 90.0, 75.0, 50.0)


class Probe(Strict):
    """One rate, tried.

    Attributes:
        rate: Requests a second that were due.
        requests: How many were answered.
        errors: How many failed, by text.
        latency_ms: The objective's percentile.
        load_cores: What the load generator used of the processor.
    """

    rate: float
    requests: int
    errors: dict[str, int]
    latency_ms: Estimate
    load_cores: float

    def holds(self, limit_ms: float) -> bool:
        """Whether the target was held, as far as was seen."""
        value = self.latency_ms.value
        return not self.errors and value is not None and value <= limit_ms

    def surely_holds(self, limit_ms: float) -> bool:
        """Whether the whole interval is within the limit."""
        high = self.latency_ms.high
        return self.holds(limit_ms) and high is not None and high <= limit_ms

    def surely_fails(self, limit_ms: float) -> bool:
        """Whether the whole interval is beyond the limit."""
        low = self.latency_ms.low
        return bool(self.errors) or (low is not None and low > limit_ms)


def probe_rate(target: Target, objective: Objective, rate: float, *, seed: int = 0) -> Probe:
    """Try one rate for as long as the percentile needs; a rate that fails gets a second run.

    Both runs then count together, so that one hiccup of the machine does not decide alone.

    Raises:
        BadRequest: The percentile needs more requests than come within a probe.
    """
    check_samples(objective, rate)
    seconds = _PROBE_SAMPLES * needed_samples(objective.percent) / rate
    seconds = min(max(seconds, LEAST_PROBE_S), MOST_PROBE_S)
    results: list[LoadResult] = []
    for turn in range(2):
        results.append(
            run_open(
                target, rate=rate, duration_s=seconds, warm_up_s=WARM_UP_S, seed=2 * seed + turn
            )
        )
        probe = _probe(rate, objective, results)
        hopeless = probe.latency_ms.value and probe.latency_ms.value > 3 * objective.limit_ms
        if probe.holds(objective.limit_ms) or hopeless:
            break
    return probe


def least_rate(percent: float) -> float:
    """Return the smallest rate at which a probe can give the percentile, in requests a second."""
    return _PROBE_SAMPLES * needed_samples(percent) / MOST_PROBE_S


def check_samples(objective: Objective, rate: float) -> None:
    """Raise BadRequest where a probe at ``rate`` cannot give the percentile."""
    if rate >= least_rate(objective.percent) * (1 - 1e-9):
        return
    needed = needed_samples(objective.percent)
    message = f"p{objective.percent:g} needs {needed:,} requests; "
    message += f"at {rate:.2g}/s that takes {needed / rate:,.0f} s" if rate else "none is answered"
    message += f", and a rate is tried for {MOST_PROBE_S:g} s at most; "
    smaller = [percent for percent in _SMALLER_PERCENTS if least_rate(percent) <= rate]
    if smaller:
        raise BadRequest(f"{message}ask for p{smaller[0]:g} or less")
    raise BadRequest(f"{message}this model is too slow for a target of requests/s")


def _probe(rate: float, objective: Objective, results: Sequence[LoadResult]) -> Probe:
    errors: dict[str, int] = {}
    windows = []
    for result in results:
        for text, count in result.errors.items():
            errors[text] = errors.get(text, 0) + count
        windows += np.array_split(result.latencies_s * 1e3, _PROBE_WINDOWS)
    return Probe(
        rate=rate,
        requests=sum(result.completed for result in results),
        errors=errors,
        latency_ms=percentile_estimate(windows, objective.percent),
        load_cores=max(result.cpu_cores for result in results),
    )
