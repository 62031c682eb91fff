"""The latencies of every window, out of perf_analyzer's per-request export."""

import mmap
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_REQUEST = re.compile(rb'"timestamp":(\d+),.*?"response_timestamps":\[(\d+)', re.DOTALL)
_BOUNDARIES = re.compile(rb'"window_boundaries":\[([\d,]+)\]')


def windows_from_export(
    path: Path, windows: int
) -> tuple[list[NDArray[np.float64]], tuple[float, float]] | None:
    """Return the latencies in ms of each window, and when the first began and the last ended.

    The export holds every output, too, as text: it is searched instead of parsed. None where it
    holds no request, or breaks off: for an output that a model declares and does not answer,
    2.51 writes whatever lies in its memory, and stops writing when that is a NaN.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        times = np.array(
            [(int(match[1]), int(match[2])) for match in _REQUEST.finditer(text)], np.int64
        ).reshape(-1, 2)
        bounds = _BOUNDARIES.search(text)
        edges = [int(edge) for edge in bounds[1].split(b",")] if bounds else []
    if not len(times) or len(edges) < 2:
        return None
    cuts = np.linspace(edges[0], edges[-1], windows + 1)
    place = np.searchsorted(cuts, times[:, 1], side="right") - 1
    latencies = (times[:, 1] - times[:, 0]) / 1e6
    span_s = (edges[0] / 1e9, edges[-1] / 1e9)
    return [latencies[place == turn] for turn in range(windows)], span_s
