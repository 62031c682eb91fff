"""Our load generator against perf_analyzer, at one constant rate."""

import statistics
from collections.abc import Sequence

import numpy as np

from latentry.contract.errors import ServerFault
from latentry.contract.strict import Strict
from latentry.profiling.estimates import Estimate, median_estimate
from latentry.profiling.load.schedules import run_open
from latentry.profiling.load.target import TritonTarget
from latentry.profiling.perf_analyzer.measurement import ProfiledModel, measure, rate_arguments

CROSS_CHECK_MOST_S = 10.0  # of one window

_WINDOWS = 7
_TOLERANCE = 0.05
_LEAST_COMPARED = 20  # requests in each window


class CrossCheck(Strict):
    """Our load generator against perf_analyzer, in alternating windows at one constant rate.

    Attributes:
        rate: Requests a second of both.
        ours_ms: Median latency of each of our windows.
        perf_analyzer_ms: Likewise.
        ratio: Median of ours over median of perf_analyzer's.
        agrees: Whether the ratio is within 5 % of 1, or the intervals of the two medians overlap.
        ours_cores: What our generator used of the processor.
        perf_analyzer_cores: Likewise.
    """

    rate: float
    ours_ms: Estimate
    perf_analyzer_ms: Estimate
    ratio: float
    agrees: bool
    ours_cores: float
    perf_analyzer_cores: float


def cross_check(
    profiled: ProfiledModel,
    rate: float,
    *,
    windows: int = _WINDOWS,
    window_s: float | None = None,
) -> CrossCheck:
    """Compare our generator with perf_analyzer at one constant rate, taking turns.

    Args:
        profiled: What is measured.
        rate: Requests a second.
        windows: Of each of the two.
        window_s: Their length; as :func:`cross_check_window_s` where left out.

    Raises:
        ServerFault: A request failed, or a window had none.
    """
    window_s = window_s or cross_check_window_s(rate)
    ours, theirs, ours_cores, their_cores = [], [], [], []
    with TritonTarget(profiled.url, profiled.model) as target:
        for turn in range(windows):
            load = rate_arguments(rate, "constant")
            found = measure(profiled, load, 1, window_s, 1)
            if not len(found.windows_ms[0]):
                raise ServerFault(f"perf_analyzer had no answer in a window of {window_s:g} s")
            theirs.append(float(np.median(found.windows_ms[0])))
            their_cores.append(found.load_cores)
            result = run_open(
                target,
                rate=rate,
                duration_s=window_s,
                warm_up_s=0.3,
                arrivals="constant",
                seed=turn,
            )
            if result.errors:
                raise ServerFault(f"a request failed: {next(iter(result.errors))}")
            if not result.completed:
                raise ServerFault(f"no request was due in a window of {window_s:g} s")
            ours.append(result.percentiles_ms((50,))[50])
            ours_cores.append(result.cpu_cores)
    return check_agreement(
        rate, ours, theirs, statistics.median(ours_cores), statistics.median(their_cores)
    )


def cross_check_window_s(rate: float) -> float:
    """Return how long a window of the cross-check has to be for its median to mean something."""
    return max(1.5, _LEAST_COMPARED / rate)


def check_agreement(
    rate: float,
    ours_ms: Sequence[float],
    theirs_ms: Sequence[float],
    ours_cores: float = 0.0,
    their_cores: float = 0.0,
) -> CrossCheck:
    """Return the verdict on the windows of two generators; see :class:`CrossCheck`."""
    ours, theirs = median_estimate(ours_ms), median_estimate(theirs_ms)
    ratio = statistics.median(ours_ms) / statistics.median(theirs_ms)
    overlap = max(min(ours_ms), min(theirs_ms)) <= min(max(ours_ms), max(theirs_ms))
    if ours.low and ours.high and theirs.low and theirs.high:
        overlap = max(ours.low, theirs.low) <= min(ours.high, theirs.high)
    return CrossCheck(
        rate=rate,
        ours_ms=ours,
        perf_analyzer_ms=theirs,
        ratio=ratio,
        agrees=abs(ratio - 1) <= _TOLERANCE or overlap,
        ours_cores=ours_cores,
        perf_analyzer_cores=their_cores,
    )
