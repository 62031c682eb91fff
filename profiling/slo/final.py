"""The best configuration against the default, both being served, in alternating windows."""

from collections.abc import Sequence

import numpy as np

from latentry.contract.strict import Strict
from latentry.contract.system import time_now
from latentry.profiling.estimates import needed_samples, permutation_p
from latentry.profiling.load.schedules import run_open
from latentry.profiling.load.target import Target
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import LEAST_PROBE_S, MOST_PROBE_S, WARM_UP_S

FINAL_WINDOWS = 7

_SIGNIFICANCE = 0.05
_TWO_SERVERS_S = 8.0  # until both are ready, and gone again


class Final(Strict):
    """The best candidate against the default, both being served, in alternating windows.

    Attributes:
        rate: Requests a second: between what the two were found to hold.
        default_ms: The objective's percentile in each window of the default.
        best_ms: Likewise of the best candidate.
        p_value: Of the two being equal: a two-sided permutation test on the ranks, which is the
            exact test of Wilcoxon, Mann and Whitney; one hiccup of the machine is one rank.
        better: Whether the best held the target in most of its windows and the default did not,
            and the difference is significant.
        measured_at: When they were compared, UTC.
    """

    rate: float
    default_ms: tuple[float, ...]
    best_ms: tuple[float, ...]
    p_value: float
    better: bool
    measured_at: str = ""


def compare_in_turn(default: Target, best: Target, objective: Objective, rate: float) -> Final:
    """Ask two servers at one rate, seven windows each in turn.

    Args:
        default: Serves the default.
        best: Serves the best candidate.
        objective: What is to be held.
        rate: Requests a second.
    """
    pair = (default, best)
    windows: tuple[list[float], list[float]] = ([], [])
    for turn in range(FINAL_WINDOWS):
        # There and back again, so that neither always comes first.
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            windows[side].append(_window_ms(pair[side], objective, rate, turn))
    return judge(objective, rate, *windows)


def judge(
    objective: Objective, rate: float, default_ms: Sequence[float], best_ms: Sequence[float]
) -> Final:
    """Return the verdict on the windows of the two; see :class:`Final`."""
    p_value = permutation_p(*_ranks(default_ms, best_ms))
    default_median, best_median = float(np.median(default_ms)), float(np.median(best_ms))
    return Final(
        rate=rate,
        default_ms=tuple(default_ms),
        best_ms=tuple(best_ms),
        p_value=p_value,
        better=best_median <= objective.limit_ms < default_median and p_value < _SIGNIFICANCE,
        measured_at=time_now(),
    )


def comparison_s(objective: Objective, rate: float) -> float:
    """Return how long a comparison at ``rate`` requests a second takes."""
    return 2 * FINAL_WINDOWS * (_window_s(objective, rate) + 1) + _TWO_SERVERS_S


def _window_ms(target: Target, objective: Objective, rate: float, seed: int) -> float:
    seconds = _window_s(objective, rate)
    result = run_open(target, rate=rate, duration_s=seconds, warm_up_s=WARM_UP_S, seed=seed)
    # A request without an answer took longer than any that has one.
    latencies = np.append(result.latencies_s, [np.inf] * sum(result.errors.values()))
    value = np.percentile(latencies, objective.percent, method="higher")
    return float(min(value * 1e3, 1e6))


def _window_s(objective: Objective, rate: float) -> float:
    needed = 1.1 * needed_samples(objective.percent) / rate
    return min(max(needed, LEAST_PROBE_S), MOST_PROBE_S)


def _ranks(first: Sequence[float], second: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the ranks of the values among all of them; equal values share theirs."""
    pooled = np.array([*first, *second])
    ranks = [float((pooled < value).sum() + (pooled == value).sum() / 2) for value in pooled]
    return ranks[: len(first)], ranks[len(first) :]
