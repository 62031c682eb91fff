"""The proof that ONNX Runtime draws what torch draws, and that a seed fixes its image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from latentry.contract.errors import BadRequest, ExportRefused, listed
from latentry.contract.kinds.kind import OutputKind, Size
from latentry.contract.kinds.picture import PictureOutput
from latentry.contract.spec import WATCH, GeneratorSpec
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import eval_copy
from latentry.export.proofs.proof_bench import (
    EngineBench,
    ProofBench,
    count_rows,
    draw_rows,
    load_engines,
)
from latentry.export.sources.modules import check_stages
from latentry.serving.entries.manifests import Parity, RowMode

TOLERANCE = 1e-4
"""Largest difference between the engines, for an output whose values reach up to 1."""

_TORCH_ADVICE = (
    "Are these the weights that were exported? Otherwise an operation means something else in "
    "ONNX: try interpolation (mode, align_corners, antialias), padding modes, rounding, and what "
    "depends on Python values"
)
_MIDDLE_BATCHES = (3, 7)
_LEAST_SEEDS = 8
_ROWS_OF_SIZE = 2
_WIDE = 1.5
MIXING = (
    "rows reach each other: look for a mean or standard deviation over the batch (minibatch stddev "
    "belongs to the discriminator), BatchNorm with the batch's statistics, attention over the "
    "batch axis, .item()"
)
_ROUNDING = (
    "that little is rounding: ONNX Runtime computes some operators in another order by batch size, "
    "such as means over channels (PixelNorm, GroupNorm), sin, log and softplus"
)


class RowsDiffer(ExportRefused):
    """A sample is another one beside other rows.

    Attributes:
        what: Which element, by how much; without causes.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}; {why}")
        self.what = what


def prove(
    module: nn.Module,
    spec: GeneratorSpec,
    artefacts: Mapping[str, bytes],
    max_batch_size: int,
    *,
    row_mode: RowMode = "batch",
) -> Parity:
    """Prove that ``artefacts`` draw what ``module`` draws, whatever the batch.

    The samples of seeds 0, 1, ... with every other input varied are drawn one at a time, in threes,
    in sevens and in batches of ``max_batch_size``, by ONNX Runtime and by a copy of ``module`` on
    the CPU in evaluation mode. Each engine's outputs must be finite and near the other's; a sample
    must come out equal to the bit in every batch, beside copies of itself and with one thread; a
    picture must have more than one colour, and every latent, class and picture that goes in an
    effect. Nothing is written and ``module`` is not changed.

    Args:
        module: The generator in PyTorch.
        spec: What it takes and gives.
        artefacts: File name to ONNX bytes, as ``onnx_from_module`` returns them.
        max_batch_size: The largest batch to be served, from 1.
        row_mode: How the engine is to compute rows. For "single" there is little to prove between
            batches of ONNX Runtime; torch still gets whole batches, which must be near.

    Returns:
        The figures for the build, with warnings about what is allowed and looks wrong.

    Raises:
        BadRequest: ``max_batch_size`` is below 1.
        RowsDiffer: A sample is another one beside other rows.
        ExportRefused: Another proof failed. The message says which output and element, both
            values, how far apart they are, and what to try.
    """
    if max_batch_size < 1:
        raise BadRequest(f"max_batch_size is {max_batch_size}; it must be at least 1")
    check_stages(module, spec)
    bench = ProofBench(spec, load_engines(spec, artefacts, rows=row_mode), eval_copy(module))
    rows = draw_rows(spec, max(max_batch_size, _LEAST_SEEDS))
    # One at a time first: what is wrong there is told without talk of batches.
    sizes = batch_sizes(max_batch_size)
    alone = bench.run_onnx(rows, 1)
    check_finite("ONNX Runtime", alone)
    worst = [_compare(bench, rows, alone, 1)]
    for size in sizes[1:]:
        together = bench.run_onnx(rows, size)
        check_identity(alone, together, f"in a batch of {size}")
        worst.append(_compare(bench, rows, together, size))
        check_equal_rows(bench, rows, size)
    one_thread = replace(bench, engines=load_engines(spec, artefacts, threads=1, rows=row_mode))
    drawn = one_thread.run_onnx(rows, max_batch_size)
    check_identity(alone, drawn, "with one engine thread")
    _check_constant(spec, alone)
    if spec.free_inputs:
        _check_sizes(bench)
    idle = _check_effects(bench, rows, max_batch_size)
    return Parity(
        engine_class=bench.engines[spec.networks[0]].engine_class,
        seeds=count_rows(rows),
        batch_sizes=tuple(sizes),
        tolerance=TOLERANCE,
        differences={key: max(item.floats[key] for item in worst) for key in worst[0].floats},
        levels=max(item.levels for item in worst),
        level_fraction=max(item.fraction for item in worst),
        peak=max(
            float(np.abs(alone[name]).max())
            for name in worst[0].floats
            if spec.find_output(name.removesuffix(".sample"))
        ),
        warnings=(*idle, *_find_oddities(spec, alone)),
    )


def batch_sizes(most: int) -> list[int]:
    """Return the batch sizes at which an export is proved."""
    return sorted({1, most, *(size for size in _MIDDLE_BATCHES if size < most)})


def _check_sizes(bench: ProofBench) -> None:
    """Prove a few samples of the least and of the largest size, too."""
    ends: tuple[Size, ...] = ("least", "largest")
    for size in ends:
        rows = draw_rows(bench.spec.at(size), _ROWS_OF_SIZE)
        alone = bench.run_onnx(rows, 1)
        check_finite("ONNX Runtime", alone)
        _compare(bench, rows, alone, 1)
        together = bench.run_onnx(rows, _ROWS_OF_SIZE)
        check_identity(alone, together, f"in a batch of {_ROWS_OF_SIZE} of the {size} size")


@dataclass(frozen=True)
class Differences:
    """What one batch size differs by: floats by output, levels of pixels, how many of them."""

    floats: dict[str, float]
    levels: int
    fraction: float


@dataclass(frozen=True)
class Sides:
    """Who gave the outputs that are compared, for messages, and in batches of how many."""

    found: str
    expected: str
    size: int

    def __str__(self) -> str:
        return f"{self.expected} at batch {self.size}"


def compare(spec: GeneratorSpec, served: Arrays, expected: Arrays, sides: Sides) -> Differences:
    """Compare all outputs with those of what is trusted.

    Raises:
        ExportRefused: One is further off than it may be.
    """
    check_finite(sides.expected, expected)
    floats = {
        key: _check_near(key, served[key], expected[key], sides)
        for key in expected
        if expected[key].dtype == np.float32 and key != WATCH
    }
    _check_watch(served, expected, sides)
    apart = [_check_levels(item, served, expected, sides) for item in spec.outputs]
    return Differences(floats, max(a[0] for a in apart), max(a[1] for a in apart))


def _compare(bench: ProofBench, rows: Arrays, served: Arrays, size: int) -> Differences:
    expected = bench.run_torch(rows, served, size)
    return compare(bench.spec, served, expected, Sides("ONNX Runtime", "torch", size))


def _check_levels(
    item: OutputKind, served: Arrays, expected: Arrays, sides: Sides
) -> tuple[int, float]:
    """Return by how many levels an output of pixels differs at most, and at how many of them."""
    if item.raw.dtype is not np.uint8:
        return 0, 0.0
    found, wanted = served[item.name], expected[item.name]
    apart = np.abs(found.astype(np.int16) - wanted)
    share = float((apart > 0).mean())
    if apart.max() > 1 and not item.is_same_but_for_rounding(found, wanted):
        index = _largest(apart)
        raise ExportRefused(
            f"{item.name}{_place(index)} is {found[index]} in {sides.found} and {wanted[index]} in "
            f"{sides}: {apart[index]} levels apart, 1 is allowed, though what the network itself "
            "gives agrees"
        )
    return int(apart.max()), share


def _check_near(
    name: str, found: NDArray[np.float32], expected: NDArray[np.float32], sides: Sides
) -> float:
    """Return the largest difference in units of the largest value, or of 1 where that is less."""
    if found.shape != expected.shape:
        raise ExportRefused(
            f"{name} has shape {list(found.shape)} in {sides.found} and {list(expected.shape)} "
            f"in {sides}; do these belong together?"
        )
    scale = scale_of(expected)
    apart = np.abs(found - expected)
    index = _largest(apart)
    if apart[index] > TOLERANCE * scale:
        advice = _TORCH_ADVICE if sides.expected == "torch" else "nothing was added"
        raise ExportRefused(
            f"{name}{_place(index)} is {found[index]:.7g} in {sides.found} and "
            f"{expected[index]:.7g} in {sides}: {apart[index]:.3g} apart, the tolerance is "
            f"{TOLERANCE * scale:.3g}. {advice}"
        )
    return float(apart[index]) / scale


def _check_watch(served: Arrays, expected: Arrays, sides: Sides) -> None:
    """Check the sum by which a server sees NaN and infinity; it is as far off as all it sums."""
    floats = [v for name, v in expected.items() if v.dtype == np.float32 and name != WATCH]
    allowed = TOLERANCE * sum(values[0].size * scale_of(values) for values in floats)
    apart = np.abs(served[WATCH] - expected[WATCH])
    if apart.max() > allowed:
        index = _largest(apart)
        raise ExportRefused(
            f"{WATCH}{_place(index)} is {served[WATCH][index]:.7g} in {sides.found} and "
            f"{expected[WATCH][index]:.7g} in {sides.expected}: {apart[index]:.3g} apart, "
            f"{allowed:.3g} is allowed, so a NaN could go unseen; export the graph again"
        )


def check_finite(engine: str, outputs: Arrays) -> None:
    """Refuse outputs of ``engine`` that hold NaN or infinity; raises ExportRefused."""
    for name, values in outputs.items():
        bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(1, bool)
        if bad.any():
            index = _largest(bad)
            rows = sorted({int(row) for row in np.nonzero(bad)[0]})
            raise ExportRefused(
                f"{name}{_place(index)} is {values[index]} in {engine}; not finite for "
                f"{'row' if len(rows) == 1 else 'rows'} {listed(rows)} (those of "
                "the same seeds, where a seed draws). Look for a division, logarithm or root of "
                "values near zero, an overflow, or "
                "weights of a training that diverged"
            )


def check_identity(alone: Arrays, other: Arrays, where: str) -> None:
    """Refuse samples that are not, to the bit, what they are alone; raises RowsDiffer."""
    for name in _floats_first(alone):
        if (difference := _find_difference(other[name], alone[name])) is not None:
            index, apart = difference
            raise RowsDiffer(
                f"{name}{_place(index)} is {other[name][index]} {where} and "
                f"{alone[name][index]} alone: {apart:.3g} apart, and no difference is allowed, "
                "because a seed must give the same image in every batch",
                _explain_mixing(alone[name], apart),
            )


def check_equal_rows(bench: EngineBench, rows: Arrays, size: int) -> None:
    """Refuse engines to which the place in a batch matters; raises RowsDiffer."""
    same = {key: np.repeat(values[:1], size, axis=0) for key, values in rows.items()}
    outputs = bench.run_onnx(same, size)
    for name in _floats_first(outputs):
        values = outputs[name]
        first = np.broadcast_to(values[:1], values.shape)
        if (difference := _find_difference(values, first)) is not None:
            index, apart = difference
            raise RowsDiffer(
                f"{name}{_place(index)} is {values[index]} and {first[index]} in row 0 of "
                f"a batch of {size} equal rows: {apart:.3g} apart; a sample must not depend on "
                "its place in the batch",
                _explain_mixing(values, apart),
            )


def _floats_first(outputs: Arrays) -> list[str]:
    """Return the names with floats first: how far they are apart tells more than levels."""
    names = [name for name in outputs if name != WATCH]  # which nobody is given
    return sorted(names, key=lambda name: outputs[name].dtype != np.float32)


def _find_difference(
    found: NDArray[Any], expected: NDArray[Any]
) -> tuple[tuple[int, ...], float] | None:
    """Return where two outputs differ most, and by how much; None where they are equal."""
    apart = np.abs(found.astype(np.float64) - expected)
    index = _largest(apart)
    return (index, float(apart[index])) if apart[index] > 0 else None


def _explain_mixing(values: NDArray[Any], apart: float) -> str:
    return _ROUNDING if apart <= TOLERANCE * scale_of(values) else MIXING


def scale_of(values: NDArray[Any]) -> float:
    """Return the largest absolute value, or 1 where that is less."""
    return max(1.0, float(np.abs(values).max()))


def _check_constant(spec: GeneratorSpec, outputs: Arrays) -> None:
    for item in spec.outputs:
        levels = outputs[item.name]
        constant = item.find_constant(levels)
        if constant.any():
            row = int(constant.argmax())
            sample = outputs.get(f"{item.name}.sample", levels)[row]
            raise ExportRefused(
                f"{item.name} of row {row} is constant: every pixel is "
                f"{levels[row].reshape(-1, levels.shape[-1])[0].tolist()}, the network gives from "
                f"{sample.min():.4g} to {sample.max():.4g}. Are these trained weights, and is the "
                "range in the spec ([-1, 1] unless it says otherwise) that of the last layer?"
            )


def _check_effects(bench: ProofBench, rows: Arrays, size: int) -> tuple[str, ...]:
    """Let one input after the other vary alone; return a warning for those without effect."""
    warnings = []
    for item in bench.spec.route(frozenset()).inputs:
        values = rows[item.name]
        if (values == values[:1]).all():
            continue
        held = {
            name: array if name == item.name else np.repeat(array[:1], len(array), axis=0)
            for name, array in rows.items()
        }
        outputs = bench.run_onnx(held, size)
        made = [outputs[output.name] for output in bench.spec.outputs]
        if any((array != array[:1]).any() for array in made):
            continue
        found = f"{len(values)} different {item.name} all give the same: it has no effect"
        if item.must_matter:
            raise ExportRefused(f"{found}. Does the forward use it, and are these trained weights?")
        warnings.append(found)
    return tuple(warnings)


def _find_oddities(spec: GeneratorSpec, outputs: Arrays) -> tuple[str, ...]:
    """Return warnings about pictures that are probably in another range than the spec says."""
    return tuple(
        finding
        for item in spec.outputs
        if isinstance(item, PictureOutput)
        for finding in _find_odd_range(item, outputs[f"{item.name}.sample"])
    )


def _find_odd_range(item: PictureOutput, sample: NDArray[np.float32]) -> Iterator[str]:
    low, high = item.range
    middle, half = (low + high) / 2, (high - low) / 2
    beyond = np.abs(sample - middle).reshape(len(sample), -1).max(axis=1) / half
    wide = int((beyond > _WIDE).sum())
    if wide * 2 > beyond.size:
        yield (
            f"{wide} of {beyond.size} {item.name} go beyond [{middle - _WIDE * half:g}, "
            f"{middle + _WIDE * half:g}] ({sample.min():.3g} to {sample.max():.3g}); it is drawn "
            f"from [{low:g}, {high:g}] and the rest is cut off: is the range in the spec right?"
        )
    if low < 0 and sample.min() >= 0:
        yield (
            f"no {item.name} has a value below 0; black is {low:g}, so they look washed out if the "
            'network\'s range is [0, 1]: then say "range": [0, 1]'
        )


def _largest(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(values.argmax()), values.shape))


def _place(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"
