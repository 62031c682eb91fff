"""The proof that another build draws what the FP32 build draws, and that a seed fixes its image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from latentry.contract.kinds.kind import Size
from latentry.contract.spec import WATCH, GeneratorSpec
from latentry.contract.wire import Arrays
from latentry.export.proofs.parity import (
    TOLERANCE,
    Differences,
    RowsDiffer,
    Sides,
    batch_sizes,
    check_equal_rows,
    check_finite,
    check_identity,
    compare,
    scale_of,
)
from latentry.export.proofs.proof_bench import EngineBench, count_rows, draw_rows
from latentry.export.proofs.speed import relative_speed
from latentry.serving.entries.manifests import Parity, RowMode
from latentry.serving.runtime.engines import Engine

Engines = Mapping[str, Engine]
Loader = Callable[[RowMode, int], Engines]

_LEAST_SEEDS = 8


@dataclass(frozen=True)
class BuildFinding:
    """What the proof of a build found.

    Attributes:
        parity: Its figures; differences are from the FP32 build.
        rows: How rows must be computed.
        speed: Samples per second in largest batches over those of the FP32 build.
        engines: What was proved, by network.
    """

    parity: Parity
    rows: RowMode
    speed: float
    engines: Engines


def prove_build(
    spec: GeneratorSpec,
    reference: Engines,
    load: Loader,
    max_batch_size: int,
    *,
    is_exact: bool = True,
) -> BuildFinding:
    """Prove that the engines of a build draw what those of the FP32 build draw.

    The samples of seeds 0, 1, ... are drawn at every size of batch that an export is proved at,
    with one thread, and, where pictures have no fixed size, of the least and the largest. They must
    be finite, near the reference's, and equal to the bit in every batch and place; where they
    are not, the same is tried with each row computed alone.

    Args:
        spec: What the generator takes and gives.
        reference: The engines of the FP32 build, by network.
        load: Loads those of the build, for one way to compute rows and a number of threads.
        max_batch_size: The largest batch to be served.
        is_exact: Whether it must be near the reference; else a gate judges that.

    Raises:
        ExportRefused: A proof failed; the message says which output, where, and by how much.
    """
    mode: RowMode = "batch"
    engines = load(mode, 0)
    look = _compare if is_exact else _measure
    try:
        parity = _prove(spec, reference, engines, load(mode, 1), max_batch_size, look)
    except RowsDiffer:
        mode = "single"
        engines = load(mode, 0)
        parity = _prove(spec, reference, engines, load(mode, 1), max_batch_size, look)
    speed = relative_speed(spec, reference, engines, max_batch_size)
    return BuildFinding(parity, mode, speed, engines)


def _prove(
    spec: GeneratorSpec,
    reference: Engines,
    engines: Engines,
    one_thread: Engines,
    most: int,
    look: "_Look",
) -> Parity:
    rows = draw_rows(spec, max(most, _LEAST_SEEDS))
    sizes = batch_sizes(most)
    alone, found = _prove_rows(spec, reference, engines, rows, sizes, look)
    check_identity(
        alone, EngineBench(spec, one_thread).run_onnx(rows, most), "with one engine thread"
    )
    if spec.free_inputs:
        ends: tuple[Size, ...] = ("least", "largest")
        for size in ends:
            fixed = spec.at(size)
            _prove_rows(fixed, reference, engines, draw_rows(fixed, 2), [1, 2], look)
    return Parity(
        engine_class=_class_of(spec, engines),
        seeds=count_rows(rows),
        batch_sizes=tuple(sizes),
        tolerance=TOLERANCE if look is _compare else None,
        differences=found.floats,
        levels=found.levels,
        level_fraction=found.fraction,
        peak=max(float(np.abs(alone[name]).max()) for name in found.floats),
        warnings=(),
    )


def _prove_rows(
    spec: GeneratorSpec,
    reference: Engines,
    engines: Engines,
    rows: Arrays,
    sizes: list[int],
    look: "_Look",
) -> tuple[Arrays, Differences]:
    """Prove ``rows`` at each size of batch; return the outputs of each alone, and how far off."""
    bench = EngineBench(spec, engines)
    alone = bench.run_onnx(rows, 1)
    check_finite(_class_of(spec, engines), alone)
    expected = EngineBench(spec, reference).run_onnx(rows, 1)
    found = look(spec, alone, expected, _class_of(spec, engines))
    for size in sizes[1:]:
        check_identity(alone, bench.run_onnx(rows, size), f"in a batch of {size}")
        check_equal_rows(bench, rows, size)
    return alone, found


_Look = Callable[[GeneratorSpec, Arrays, Arrays, str], Differences]


def _compare(
    spec: GeneratorSpec, found: Arrays, expected: Arrays, engine_class: str
) -> Differences:
    """Return how far outputs are from FP32's; refuse those that are too far."""
    return compare(spec, found, expected, Sides(engine_class, "the FP32 build", 1))


def _measure(
    spec: GeneratorSpec, found: Arrays, expected: Arrays, engine_class: str
) -> Differences:
    """Return how far outputs are from FP32's, however far."""
    apart = {
        name: np.abs(found[name].astype(np.float64) - values)
        for name, values in expected.items()
        if name != WATCH
    }
    floats = {
        name: float(apart[name].max()) / scale_of(expected[name])
        for name in apart
        if expected[name].dtype == np.float32
    }
    levels = [apart[name] for name in apart if expected[name].dtype == np.uint8]
    return Differences(
        floats,
        max((int(each.max()) for each in levels), default=0),
        max((float((each > 0).mean()) for each in levels), default=0.0),
    )


def _class_of(spec: GeneratorSpec, engines: Engines) -> str:
    return engines[spec.networks[0]].engine_class
