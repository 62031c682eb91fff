"""The proof that another build draws what the FP32 build draws, and that a seed fixes its image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import WATCH, GeneratorSpec
from latentry.contract.wire import Arrays
from latentry.export.proofs.parity import (
    TOLERANCE,
    RowsDiffer,
    batch_sizes,
    check_equal_rows,
    check_finite,
    check_identity,
    scale_of,
)
from latentry.export.proofs.proof_bench import EngineBench, count_rows, draw_rows
from latentry.export.proofs.speed import relative_speed
from latentry.serving.entries.manifests import Parity, RowMode
from latentry.serving.runtime.engines import Engine

Engines = Mapping[str, Engine]

_LEAST_SEEDS = 8


@dataclass(frozen=True)
class BuildFinding:
    """What the proof of a build found.

    Attributes:
        parity: Its figures; differences are from the FP32 build.
        rows: How rows must be computed.
        speed: Samples per second in largest batches over those of the FP32 build.
    """

    parity: Parity
    rows: RowMode
    speed: float


def prove_build(
    spec: GeneratorSpec,
    reference: Engines,
    load: Callable[[RowMode], Engines],
    max_batch_size: int,
) -> BuildFinding:
    """Prove that the engines of a build draw what those of the FP32 build draw.

    The samples of seeds 0, 1, ... are drawn at every size of batch that an export is proved at.
    They must be finite, near the reference's samples, and equal to the bit in every batch and
    place; where they are not, the same is tried with each row computed alone.

    Args:
        spec: What the generator takes and gives.
        reference: The engines of the FP32 build, by network.
        load: Loads those of the build, for one way to compute rows.
        max_batch_size: The largest batch to be served.

    Raises:
        ExportRefused: A proof failed; the message says which output, where, and by how much.
    """
    rows = draw_rows(spec, max(max_batch_size, _LEAST_SEEDS))
    expected = EngineBench(spec, reference).run_onnx(rows, 1)
    mode: RowMode = "batch"
    try:
        parity = _prove(spec, load(mode), rows, expected, max_batch_size)
    except RowsDiffer:
        mode = "single"
        parity = _prove(spec, load(mode), rows, expected, max_batch_size)
    speed = relative_speed(spec, reference, load(mode), max_batch_size)
    return BuildFinding(parity, mode, speed)


def _prove(
    spec: GeneratorSpec, engines: Engines, rows: Arrays, expected: Arrays, max_batch_size: int
) -> Parity:
    bench = EngineBench(spec, engines)
    sizes = batch_sizes(max_batch_size)
    alone = bench.run_onnx(rows, 1)
    engine_class = engines[spec.networks[0]].engine_class
    check_finite(engine_class, alone)
    differences = {
        name: _difference(name, alone[name], expected[name], engine_class)
        for name in expected
        if expected[name].dtype == np.float32 and name != WATCH
    }
    for size in sizes[1:]:
        check_identity(alone, bench.run_onnx(rows, size), f"in a batch of {size}")
        check_equal_rows(bench, rows, size)
    levels = {
        item.name: np.abs(alone[item.name].astype(np.int16) - expected[item.name])
        for item in spec.outputs
        if item.raw.dtype is np.uint8
    }
    return Parity(
        engine_class=engine_class,
        seeds=count_rows(rows),
        batch_sizes=tuple(sizes),
        tolerance=TOLERANCE,
        differences=differences,
        levels=max((int(apart.max()) for apart in levels.values()), default=0),
        level_fraction=max((float((apart > 0).mean()) for apart in levels.values()), default=0.0),
        peak=max(float(np.abs(alone[name]).max()) for name in differences),
        warnings=(),
    )


def _difference(name: str, found: NDArray[Any], expected: NDArray[Any], engine_class: str) -> float:
    """Return the largest difference in units of the output's largest value, or refuse it."""
    apart = np.abs(found - expected)
    scale = scale_of(expected)
    if apart.max() > TOLERANCE * scale:
        index = np.unravel_index(int(apart.argmax()), apart.shape)
        place = ", ".join(str(int(part)) for part in index)
        raise ExportRefused(
            f"{name}[{place}] is {found[index]:.7g} by {engine_class} and {expected[index]:.7g} by "
            f"the FP32 build: {apart[index]:.3g} apart, the tolerance is {TOLERANCE * scale:.3g}; "
            "nothing was added"
        )
    return float(apart.max()) / scale
