"""Where more callers stop paying."""

from collections.abc import Sequence

import numpy as np

from latentry.contract.strict import Strict
from latentry.profiling.points import Point

_LEAST_HEIGHT = 0.1  # of a knee; below it throughput grows all along


class Knee(Strict):
    """Where more callers stop paying.

    As in Kneedle (Satopaa et al., "Finding a 'Kneedle' in a Haystack", ICDCSW 2011): callers and
    throughput are brought to 0 .. 1 over the sweep; the knee is the point farthest above the
    diagonal.

    Attributes:
        concurrency: Callers at the knee.
        throughput: Requests a second there.
        mean_ms: Mean latency there.
        height: How far it is above the diagonal, 0 .. 1.
    """

    concurrency: int
    throughput: float
    mean_ms: float
    height: float


def find_knee(points: Sequence[Point]) -> Knee | None:
    """Return the knee of the concurrency sweep; see :class:`Knee` for the definition.

    None where fewer than three points were measured or throughput grows all along.
    """
    good = [p for p in points if p.kind == "concurrency" and p.throughput.value and p.mean_ms.value]
    if len(good) < 3:
        return None
    callers = np.array([point.value for point in good])
    throughput = np.array([point.throughput.value or 0.0 for point in good])
    if np.ptp(callers) == 0 or np.ptp(throughput) == 0:
        return None
    heights = (throughput - throughput.min()) / np.ptp(throughput)
    heights -= (callers - callers.min()) / np.ptp(callers)
    best = int(heights.argmax())
    if heights[best] < _LEAST_HEIGHT:
        return None
    return Knee(
        concurrency=int(callers[best]),
        throughput=float(throughput[best]),
        mean_ms=good[best].mean_ms.value or 0.0,
        height=float(heights[best]),
    )
