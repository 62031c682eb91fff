"""What a figure is worth: intervals, the least number of samples, and whether two figures differ.

An interval says where the figure would fall if the same were measured again at once, in 95 of 100
cases; it says nothing of another day or another machine.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentry.contract.strict import Strict

LEAST_BEYOND = 10
"""So many samples must lie above a percentile before it is printed: p99 needs 1,000 samples.

With fewer, the largest few latencies alone decide, and the normal approximation of the interval
(see :func:`percentile_estimate`) is not allowed either.
"""

_QUANTILE = 0.975  # both ends of an interval leave 2.5 % beyond
_Z = 1.96  # of the normal distribution, there
_MOST_PERMUTATIONS = 20_000


class Estimate(Strict):
    """A figure with its 95 % interval, or the reason why there is none.

    Attributes:
        value: The figure; None where there are too few samples for it.
        low: Lower end of the interval; None where one window gives no interval.
        high: Upper end.
        windows: The same figure of each window alone.
        why: Why there is no value, and what would help.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    windows: tuple[float, ...] = ()
    why: str = ""


def mean_estimate(windows: Sequence[float]) -> Estimate:
    """Return the mean of the windows with Student's t-interval, windows being independent."""
    if not windows:
        return Estimate(why="nothing was measured")
    mean = float(np.mean(windows))
    half = _half_width(windows)
    low, high = (mean - half, mean + half) if math.isfinite(half) else (None, None)
    return Estimate(value=mean, low=low, high=high, windows=tuple(map(float, windows)))


def median_estimate(values: Sequence[float]) -> Estimate:
    """Return the median with the interval between two order statistics (of 7 values: all of them).

    Conover, Practical Nonparametric Statistics (3rd ed. 1999), section 3.2: the confidence is the
    binomial probability that the true median lies between them.
    """
    if not values:
        return Estimate(why="nothing was measured")
    ordered = sorted(map(float, values))
    count = len(ordered)
    rank = max(1, math.floor((count - _Z * math.sqrt(count)) / 2))
    return Estimate(
        value=float(np.median(ordered)),
        low=ordered[rank - 1],
        high=ordered[count - rank],
        windows=tuple(map(float, values)),
    )


def percentile_estimate(windows: Sequence[NDArray[np.float64]], percent: float) -> Estimate:
    """Return a percentile of all windows' samples together, or why it is not to be had.

    The interval covers two intervals: the one between two order statistics of all samples
    (distribution-free; Conover 1999, section 3.2), which takes samples for independent, and
    Student's t-interval over the windows' own percentiles, which sees slow changes but no more
    windows than there are.

    Args:
        windows: The samples of each window.
        percent: 0 .. 100.
    """
    samples = np.sort(np.concatenate(windows)) if len(windows) else np.empty(0)
    count, needed = len(samples), needed_samples(percent)
    if count < needed:
        why = f"p{percent:g} needs {needed} samples, there are {count}"
        longer = f"; measure {1.1 * needed / count:.1f} times as long" if count else ""
        return Estimate(why=why + longer)
    value = float(np.percentile(samples, percent))
    share = percent / 100
    spread = _Z * math.sqrt(count * share * (1 - share))
    low = float(samples[max(0, math.floor(count * share - spread) - 1)])
    high = float(samples[min(count - 1, math.ceil(count * share + spread))])
    own = [float(np.percentile(window, percent)) for window in windows if len(window)]
    if math.isfinite(half := _half_width(own)):
        low, high = max(0.0, min(low, value - half)), max(high, value + half)
    return Estimate(value=value, low=low, high=high, windows=tuple(own))


def needed_samples(percent: float) -> int:
    """Return how many samples a percentile needs: 10 above it (and at least 20 in all)."""
    return max(20, math.ceil(round(LEAST_BEYOND / (1 - percent / 100), 6)))


def permutation_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the two-sided p-value that both were drawn from the same source.

    An exact permutation test on the difference of the means (Fisher 1935; Good, Permutation,
    Parametric and Bootstrap Tests of Hypotheses, 2005): the share of all ways to divide the pooled
    values that differ at least as much. Above 20,000 ways, so many random ones.
    """
    pooled = np.array([*first, *second], np.float64)
    count, size = len(pooled), len(first)
    if not size or size == count:
        return 1.0
    if math.comb(count, size) <= _MOST_PERMUTATIONS:
        chosen = np.array(list(itertools.combinations(range(count), size)))
    else:
        random = np.random.default_rng(0)
        shuffled = random.permuted(np.tile(np.arange(count), (_MOST_PERMUTATIONS, 1)), axis=1)
        chosen = np.vstack([np.arange(size), shuffled[:, :size]])
    sums = pooled[chosen].sum(axis=1)
    differences = np.abs(sums / size - (pooled.sum() - sums) / (count - size))
    observed = abs(float(np.mean(first)) - float(np.mean(second)))
    return float(np.mean(differences >= observed * (1 - 1e-9)))


def discoveries(p_values: Sequence[float], rate: float = 0.05) -> list[bool]:
    """Return which of several tests count, so that at most ``rate`` of those are false alarms.

    Benjamini and Hochberg (1995), "Controlling the false discovery rate".
    """
    order = np.argsort(p_values)
    allowed = rate * (np.arange(len(order)) + 1) / max(1, len(order))
    passing = np.nonzero(np.asarray(p_values)[order] <= allowed)[0]
    last = int(passing[-1]) + 1 if len(passing) else 0
    counted = np.zeros(len(order), bool)
    counted[order[:last]] = True
    return [bool(value) for value in counted]


def _half_width(windows: Sequence[float]) -> float:
    """Return half the width of the t-interval of a mean; infinite for a single window."""
    count = len(windows)
    if count < 2:
        return math.inf
    # Here, because importing it is slow; it is what scipy.stats.t.ppf calls, which is slower still.
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, _QUANTILE) * np.std(windows, ddof=1) / math.sqrt(count))
