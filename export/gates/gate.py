"""The gate: the same samples by FP32 and by a build in fewer bits, measured and judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import ExportRefused
from latentry.contract.kinds.kind import OutputKind
from latentry.contract.kinds.label_map import LabelMapOutput
from latentry.contract.kinds.picture import PixelsOutput
from latentry.contract.spec import GeneratorSpec
from latentry.export.gates.bounds import LEAST, is_within
from latentry.export.gates.frechet import (
    Features,
    Interval,
    main_directions,
    paired_interval,
    pixel_features,
)
from latentry.export.gates.samples import Pair, PairedSamples, as_pictures
from latentry.serving.entries.manifests import Gate

LEAST_SAMPLES, MOST_SAMPLES = 4000, 50_000
SHOWN = 8
_EQUAL_DB = 150.0  # instead of infinity, which JSON has not
_GOOD_DB = 30.0
LEAST_FOR_FRECHET = 100  # ten in each range of seeds
_PATCH = 8
REFERENCE = (
    "a hundredth of the spread of FP32's own pictures (the trace of their covariance), or of one "
    "level in each cell of 8 x 8 where that is more"
)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Shown:
    """One sample for people: the main picture by FP32 and by the build, and how like they are."""

    index: int
    psnr_db: float
    expected: NDArray[np.uint8]
    found: NDArray[np.uint8]


@dataclass(frozen=True)
class GateFinding:
    """What a gate found.

    Attributes:
        gate: The figures, as a build keeps them.
        faults: What is not within its bound, in words; nothing where the gate passed.
        psnr_db: Of every sample, the least of its outputs.
        first: The first samples.
        worst: Those that are least like FP32's, the worst first.
    """

    gate: Gate
    faults: tuple[str, ...]
    psnr_db: NDArray[np.float64]
    first: tuple[Shown, ...]
    worst: tuple[Shown, ...]


def run_gate(
    spec: GeneratorSpec,
    samples: PairedSamples,
    bounds: Mapping[str, float],
    *,
    least: int | None = None,
    progress: Progress = lambda _: None,
) -> GateFinding:
    """Compare a build with FP32 over at least ``least`` samples, as many as it takes to decide.

    A Frechet distance whose 95 % interval holds its bound is measured over twice as many samples,
    up to 50,000; undecided then, it is refused.

    Args:
        spec: What the generator takes and gives.
        samples: The samples by both.
        bounds: What is allowed; see :mod:`latentry.export.gates.bounds`.
        least: How many samples to begin with; None for 4,000.
        progress: Told how many samples have been compared.

    Raises:
        ExportRefused: The build gives NaN or infinity.
    """
    measured = _Measured(spec)
    most = min(MOST_SAMPLES, samples.most or MOST_SAMPLES)
    stop, done = min(least or LEAST_SAMPLES, most), 0
    while True:
        for pair in samples.draw(done, stop):
            measured.add(pair)
            progress(pair.first + len(pair))
        share = measured.frechet()
        is_undecided = share is not None and share.low < bounds["frechet"] < share.high
        if stop == most or not is_undecided:
            return measured.finding(bounds, share)
        done, stop = stop, min(2 * stop, most)


@dataclass
class _Measured:
    """What has been measured so far."""

    spec: GeneratorSpec
    psnr_db: list[NDArray[np.float64]] = field(default_factory=list)
    worst_patch: float = 0.0
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    features: tuple[list[Features], list[Features]] = field(default_factory=lambda: ([], []))
    first: list[Shown] = field(default_factory=list)
    worst: list[Shown] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many samples."""
        return sum(map(len, self.psnr_db))

    def add(self, pair: Pair) -> None:
        """Measure some samples."""
        ratios = [
            item.psnr(pair.found[item.name], pair.expected[item.name]) for item in self.spec.outputs
        ]
        psnr_db = np.minimum(np.min(ratios, axis=0), _EQUAL_DB)
        self.psnr_db.append(psnr_db)
        for item in self.spec.outputs:
            _check_constant(item, pair)
            if isinstance(item, PixelsOutput) and not isinstance(item, LabelMapOutput):
                self._add_pixels(item, pair)
        self._add_shown(pair, psnr_db)
        if main := self.spec.picture:
            for kept, side in zip(self.features, (pair.expected, pair.found), strict=True):
                kept.append(pixel_features(side[main.name]))

    def _add_pixels(self, item: OutputKind, pair: Pair) -> None:
        expected, found = (
            as_pictures(side[item.name]).astype(np.int16) for side in (pair.expected, pair.found)
        )
        apart = found - expected
        self.worst_patch = max(self.worst_patch, _worst_patch(np.abs(apart)))
        means = apart.mean(axis=(1, 2)).sum(axis=0)
        self.sums[item.name] = self.sums.get(item.name, 0.0) + means

    def _add_shown(self, pair: Pair, psnr_db: NDArray[np.float64]) -> None:
        if (item := self.spec.picture) is None:
            return
        sides = pair.expected[item.name], pair.found[item.name]

        def shown(place: int) -> Shown:
            pictures = (side[place].copy() for side in sides)
            return Shown(pair.first + place, float(psnr_db[place]), *pictures)

        self.first += map(shown, range(min(len(pair), SHOWN - len(self.first))))
        candidates = [*self.worst, *map(shown, np.argsort(psnr_db, kind="stable")[:SHOWN].tolist())]
        self.worst = sorted(candidates, key=lambda one: (one.psnr_db, one.index))[:SHOWN]

    def frechet(self) -> Interval | None:
        """Return the distance as a share of the reference; None without pictures, or with few."""
        if self.spec.picture is None or self.count < LEAST_FOR_FRECHET:
            return None
        expected, found = map(np.concatenate, self.features)
        directions = main_directions(expected)
        first, second = expected @ directions, found @ directions
        spread = float(np.trace(np.atleast_2d(np.cov(first, rowvar=False))))
        reference = max(spread / 100, float(expected.shape[1]))
        share = paired_interval(first, second)
        return Interval(share.mean / reference, share.low / reference, share.high / reference)

    def finding(self, bounds: Mapping[str, float], share: Interval | None) -> GateFinding:
        """Judge what was measured."""
        psnr_db = np.concatenate(self.psnr_db)
        found = {
            "worst_psnr_db": float(psnr_db.min()),
            "median_psnr_db": float(np.median(psnr_db)),
            "below_30_db": float((psnr_db < _GOOD_DB).mean()),
        }
        if self.sums:
            bias = max(float(np.abs(total).max()) for total in self.sums.values()) / len(psnr_db)
            found |= {"worst_patch_levels": self.worst_patch, "bias_levels": bias}
        if share:
            found |= {"frechet": share.high, "frechet_mean": share.mean}
        gate = Gate(
            samples=len(psnr_db),
            found=found,
            bounds={name: bound for name, bound in bounds.items() if name in found},
            reference=REFERENCE if share else "",
        )
        return GateFinding(
            gate, faults_of(gate, self.worst), psnr_db, tuple(self.first), tuple(self.worst)
        )


def faults_of(gate: Gate, worst: list[Shown]) -> tuple[str, ...]:
    """Return what is not within its bound, in words."""
    which = f" (sample {worst[0].index})" if worst else ""
    return tuple(
        f"{name} is {gate.found[name]:.4g}{which if name in LEAST else ''}, and "
        f"{'at least' if name in LEAST else 'at most'} {bound:g} is allowed"
        for name, bound in gate.bounds.items()
        if not is_within(name, gate.found[name], bound)
    )


def refuse(build: str, finding: GateFinding, page: Path) -> None:
    """Refuse a build that is not as good as FP32, as the page shows; raises ExportRefused."""
    if finding.faults:
        raise ExportRefused(
            f"over {finding.gate.samples:,} samples, {build} does not draw as FP32 does: "
            f"{'; '.join(finding.faults)}. Nothing was added; pictures side by side: {page}. "
            f"Where that is good enough, say so by name: --bound {finding.faults[0].split()[0]}=..."
        )


def _check_constant(item: OutputKind, pair: Pair) -> None:
    """Refuse an output of one value throughout where FP32's is not; raises ExportRefused."""
    found, expected = (item.find_constant(side[item.name]) for side in (pair.found, pair.expected))
    if (lost := found & ~expected).any():
        raise ExportRefused(
            f"{item.name} of sample {pair.first + int(lost.argmax())} is of one value throughout, "
            "and FP32's is not; nothing was added"
        )


def _worst_patch(apart: NDArray[Any]) -> float:
    """Return the largest mean over a patch of 8 x 8 pixels of [N, H, W, C], of any channel.

    Patches lie side by side, once from the first row and column on and once up to the last.
    """
    worst = 0.0
    height, width = apart.shape[1:3]
    side_y, side_x = min(_PATCH, height), min(_PATCH, width)
    for top in {0, height % side_y}:
        for left in {0, width % side_x}:
            rows, columns = height // side_y, width // side_x
            cut = apart[:, top : top + rows * side_y, left : left + columns * side_x]
            shape = (len(cut), rows, side_y, columns, side_x, cut.shape[3])
            worst = max(worst, float(cut.reshape(shape).mean(axis=(2, 4)).max()))
    return worst
