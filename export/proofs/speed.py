"""How fast two ways to run the same networks are, side by side."""

import statistics
import time
from collections.abc import Mapping

from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import Arrays
from latentry.export.proofs.proof_bench import EngineBench, draw_rows
from latentry.serving.runtime.engines import Engine

_MEASURED_S = 0.3
_ROUNDS = 5


def relative_speed(
    spec: GeneratorSpec, usual: Mapping[str, Engine], other: Mapping[str, Engine], size: int
) -> float:
    """Return samples per second of the ``other`` engines over those of the ``usual`` ones.

    In batches of ``size``, taking turns, and the middle of five: a machine has other things to do.
    """
    rows = draw_rows(spec, size)
    before, after = EngineBench(spec, usual), EngineBench(spec, other)
    return statistics.median(
        _seconds(before, rows, size) / _seconds(after, rows, size) for _ in range(_ROUNDS)
    )


def _seconds(bench: EngineBench, rows: Arrays, size: int) -> float:
    """Return how long a batch takes."""
    start, runs = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < _MEASURED_S or not runs:
        bench.run_onnx(rows, size)
        runs += 1
    return passed / runs
