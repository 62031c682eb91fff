"""The proof that ONNX Runtime draws what torch draws, and that a seed fixes its image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from latentry.contract.errors import BadRequest, ExportRefused, listed
from latentry.contract.images import uint8_from_sample
from latentry.contract.spec import GeneratorSpec, Role
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import eval_copy
from latentry.export.proofs.proof_bench import ProofBench, count_rows, draw_rows, load_engines
from latentry.export.sources.modules import check_stages
from latentry.serving.entries.manifest import Parity

TOLERANCE = 1e-4
"""Largest difference between the engines, for an output whose values reach up to 1."""

_MIDDLE_BATCHES = (3, 7)
_LEAST_SEEDS = 8
_WIDE = 1.5
_MIXING = (
    "rows reach each other: look for a mean or standard deviation over the batch (minibatch stddev "
    "belongs to the discriminator), BatchNorm with the batch's statistics, attention over the "
    "batch axis, .item()"
)
# Measured with ONNX Runtime 1.31 on AVX-512, bit by bit, operator by operator.
_ROUNDING = (
    "that little is rounding: ONNX Runtime computes some operators in another order by batch size. "
    "Known ones: a mean or sum over axis 1 of [N, C, H, W], as in PixelNorm (take a 1x1 "
    "convolution with the constant weights 1/C); sin, cos, atan, log, softplus and mish of values "
    "that depend on z (take leaky_relu, tanh or sigmoid); einsum with weights (take linear)"
)


def prove(
    module: nn.Module, spec: GeneratorSpec, artefacts: Mapping[str, bytes], max_batch_size: int
) -> Parity:
    """Prove that ``artefacts`` draw what ``module`` draws, whatever the batch.

    The samples of seeds 0, 1, ... with mixed classes and truncations are drawn one at a time, in
    threes, in sevens and in batches of ``max_batch_size``, by ONNX Runtime and by a copy of
    ``module`` on the CPU in evaluation mode. Each engine's outputs must be finite and near the
    other's; a sample must come out equal to the bit in every batch, beside copies of itself and
    with one thread; an image must have more than one colour and depend on z. Nothing is written
    and ``module`` is not changed.

    Args:
        module: The generator in PyTorch.
        spec: What it takes and gives.
        artefacts: File name to ONNX bytes, as ``onnx_from_module`` returns them.
        max_batch_size: The largest batch to be served, from 1.

    Returns:
        The figures for the manifest, with warnings about what is allowed and looks wrong.

    Raises:
        BadRequest: ``max_batch_size`` is below 1.
        ExportRefused: A proof failed. The message says which output and element, both values, how
            far apart they are, and what to try.
    """
    if max_batch_size < 1:
        raise BadRequest(f"max_batch_size is {max_batch_size}; it must be at least 1")
    check_stages(module, spec)
    bench = ProofBench(spec, eval_copy(module), load_engines(spec, artefacts))
    rows = draw_rows(spec, max(max_batch_size, _LEAST_SEEDS))
    # One at a time first: what is wrong there is told without talk of batches.
    sizes = sorted({1, max_batch_size, *(b for b in _MIDDLE_BATCHES if b < max_batch_size)})
    alone = bench.run_onnx(rows, 1)
    _check_finite("ONNX Runtime", alone)
    _check_peak(alone)
    worst = [_compare(bench, rows, alone, 1)]
    for size in sizes[1:]:
        together = bench.run_onnx(rows, size)
        _check_identity(alone, together, f"in a batch of {size}")
        worst.append(_compare(bench, rows, together, size))
        _check_equal_rows(bench, rows, size)
    one_thread = ProofBench(spec, bench.module, load_engines(spec, artefacts, threads=1))
    _check_identity(alone, one_thread.run_onnx(rows, max_batch_size), "with one engine thread")
    _check_images(alone)
    _check_z_matters(bench, rows, max_batch_size)
    return Parity(
        engine_class=bench.engines[next(iter(spec.stages))].engine_class,
        seeds=count_rows(rows),
        batch_sizes=tuple(sizes),
        tolerance=TOLERANCE,
        differences={key: max(item.floats[key] for item in worst) for key in worst[0].floats},
        image_levels=max(item.levels for item in worst),
        image_fraction=max(item.fraction for item in worst),
        peak=float(alone["peak"].max()),
        warnings=_find_oddities(alone),
    )


@dataclass(frozen=True)
class _Differences:
    """What one batch size differs by from torch."""

    floats: dict[str, float]
    levels: int
    fraction: float


def _compare(bench: ProofBench, rows: Arrays, served: Arrays, size: int) -> _Differences:
    expected = bench.run_torch(rows, served, size)
    _check_finite("torch", expected)
    floats = {key: _check_near(key, served[key], expected[key], size) for key in expected}
    image = uint8_from_sample(expected["sample"])
    apart = np.abs(served["image"].astype(np.int16) - image)
    if apart.max() > 1:
        index = _largest(apart)
        raise ExportRefused(
            f"image{_place(index)} is {served['image'][index]} in ONNX Runtime and {image[index]} "
            f"in torch at batch {size}: {apart[index]} levels apart, 1 is allowed, though the "
            "samples agree; the graph must compute clamp(sample * 127.5 + 128, 0, 255)"
        )
    return _Differences(floats, int(apart.max()), float((apart > 0).mean()))


def _check_near(
    name: str, found: NDArray[np.float32], expected: NDArray[np.float32], size: int
) -> float:
    """Return the largest difference in units of the largest value, or of 1 where that is less."""
    if found.shape != expected.shape:
        raise ExportRefused(
            f"{name} has shape {list(found.shape)} in ONNX Runtime and {list(expected.shape)} "
            f"in torch at batch {size}; does this module belong to these files?"
        )
    scale = _scale(expected)
    apart = np.abs(found - expected)
    index = _largest(apart)
    if apart[index] > TOLERANCE * scale:
        raise ExportRefused(
            f"{name}{_place(index)} is {found[index]:.7g} in ONNX Runtime and "
            f"{expected[index]:.7g} in torch at batch {size}: {apart[index]:.3g} apart, the "
            f"tolerance is {TOLERANCE * scale:.3g}. Are these the weights that were exported? "
            "Otherwise an operation means something else in ONNX: try interpolation (mode, "
            "align_corners, antialias), padding modes, rounding, and what depends on Python values"
        )
    return float(apart[index]) / scale


def _check_finite(engine: str, outputs: Arrays) -> None:
    for name, values in outputs.items():
        bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(1, bool)
        if bad.any():
            index = _largest(bad)
            seeds = sorted({int(row) for row in np.nonzero(bad)[0]})
            raise ExportRefused(
                f"{name}{_place(index)} is {values[index]} in {engine}; not finite for "
                f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}. "
                "Look for a division, logarithm or root of values near zero, an overflow, or "
                "weights of a training that diverged"
            )


def _check_peak(outputs: Arrays) -> None:
    """The graph's own watch must see what is there."""
    expected = np.abs(outputs["sample"]).max(axis=(1, 2, 3))
    if (wrong := outputs["peak"] != expected).any():
        row = int(wrong.argmax())
        raise ExportRefused(
            f"peak[{row}] is {outputs['peak'][row]}, the largest absolute value of that sample is "
            f"{expected[row]}; NaN could go unseen; export again with latentry"
        )


def _check_identity(alone: Arrays, other: Arrays, where: str) -> None:
    for name in _floats_first(alone):
        if (difference := _find_difference(other[name], alone[name])) is not None:
            index, apart = difference
            raise ExportRefused(
                f"{name}{_place(index)} is {other[name][index]} {where} and "
                f"{alone[name][index]} alone: {apart:.3g} apart, and no difference is allowed, "
                "because a seed must give the same image in every batch; "
                f"{_explain_mixing(alone[name], apart)}"
            )


def _check_equal_rows(bench: ProofBench, rows: Arrays, size: int) -> None:
    same = {key: np.repeat(values[:1], size, axis=0) for key, values in rows.items()}
    outputs = bench.run_onnx(same, size)
    for name in _floats_first(outputs):
        values = outputs[name]
        first = np.broadcast_to(values[:1], values.shape)
        if (difference := _find_difference(values, first)) is not None:
            index, apart = difference
            raise ExportRefused(
                f"{name}{_place(index, seed=0)} is {values[index]} and {first[index]} in row 0 of "
                f"a batch of {size} equal rows: {apart:.3g} apart; a sample must not depend on "
                f"its place in the batch; {_explain_mixing(values, apart)}"
            )


def _floats_first(outputs: Arrays) -> list[str]:
    """Return the names with the image last: how far floats are apart tells more than levels."""
    return sorted(outputs, key=lambda name: name == "image")


def _find_difference(
    found: NDArray[Any], expected: NDArray[Any]
) -> tuple[tuple[int, ...], float] | None:
    """Return where two outputs differ most, and by how much; None where they are equal."""
    apart = np.abs(found.astype(np.float64) - expected)
    index = _largest(apart)
    return (index, float(apart[index])) if apart[index] > 0 else None


def _explain_mixing(values: NDArray[Any], apart: float) -> str:
    return _ROUNDING if apart <= TOLERANCE * _scale(values) else _MIXING


def _scale(values: NDArray[Any]) -> float:
    return max(1.0, float(np.abs(values).max()))


def _check_images(outputs: Arrays) -> None:
    image = outputs["image"]
    flat = image.reshape(len(image), -1, image.shape[-1])
    constant = (flat == flat[:, :1]).all(axis=(1, 2))
    if flat.shape[1] > 1 and constant.any():
        seed = int(constant.argmax())
        low, high = outputs["sample"][seed].min(), outputs["sample"][seed].max()
        raise ExportRefused(
            f"the image of seed {seed} is constant: every pixel is {flat[seed, 0].tolist()}, the "
            f"sample reaches from {low:.4g} to {high:.4g}. Samples must be in [-1, 1]: are these "
            "trained weights, and is the last layer's range right?"
        )


def _check_z_matters(bench: ProofBench, rows: Arrays, size: int) -> None:
    """Only z differs between these rows, so the images must."""
    held = {Role.CLASS_LABEL: 0, Role.TRUNCATION_PSI: 1}
    same = {
        key: np.full_like(values, held[Role(key)]) if key in held else values
        for key, values in rows.items()
    }
    image = bench.run_onnx(same, size)["image"]
    if (image == image[:1]).all():
        raise ExportRefused(
            f"the seeds 0 to {len(image) - 1} all give the same image: z has no effect. "
            "Does the forward use it, and are these trained weights?"
        )


def _find_oddities(outputs: Arrays) -> tuple[str, ...]:
    """Return warnings about samples that are probably in another range than [-1, 1]."""
    found = []
    peak = outputs["peak"]
    wide = int((peak > _WIDE).sum())
    if wide * 2 > peak.size:
        found.append(
            f"{wide} of {peak.size} samples go beyond {_WIDE} (up to {peak.max():.3g}); a sample "
            "is drawn from [-1, 1] and the rest is cut off: does the network end in tanh?"
        )
    if outputs["sample"].min() >= 0:
        found.append(
            "no sample has a value below 0; black is -1, so the images look washed out if the "
            "network's range is [0, 1]"
        )
    return tuple(found)


def _largest(values: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(values.argmax()), values.shape))


def _place(index: tuple[int, ...], seed: int | None = None) -> str:
    return f"[{', '.join(map(str, index))}] (seed {index[0] if seed is None else seed})"
