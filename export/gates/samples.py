"""The same samples by FP32 and by a build, a few at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.kinds.vector import VectorInput
from latentry.contract.seeds import LatentDrawer, stream_words
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import Arrays
from latentry.export.calibration import MOST_EXAMPLES
from latentry.export.proofs.parity import check_finite
from latentry.export.proofs.proof_bench import EngineBench
from latentry.serving.runtime.engines import Engine

_MOST_BYTES = 64 * 2**20
_MOST_EXAMPLES = 4096


@dataclass(frozen=True)
class Pair:
    """Samples from index ``first`` on, drawn by both: outputs by name, [N, ...]."""

    first: int
    expected: Arrays
    found: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.found.values())))


class PairedSamples:
    """Draws the samples 0, 1, ... by FP32 and by a build.

    Sample i has the seed first_seed + i, and of every other input one example: up to 4,096 of each,
    in an order of its own, so that inputs vary apart from each other, and from the first one again
    after the last. Of a model that draws nothing there are as many samples as examples.
    """

    def __init__(
        self,
        spec: GeneratorSpec,
        reference: Mapping[str, Engine],
        engines: Mapping[str, Engine],
        size: int,
        pictures: Arrays,
        *,
        first_seed: int = 0,
    ) -> None:
        """Draw ``size`` samples at a time; ``pictures`` are rows of inputs instead of examples."""
        route = spec.route(frozenset())
        self._size, self._first_seed = size, first_seed
        self._reference, self._bench = EngineBench(spec, reference), EngineBench(spec, engines)
        self._drawers = {
            item.name: LatentDrawer(item)
            for item in route.inputs
            if isinstance(item, LatentInput) and item in route.drawn
        }
        self._examples = {
            item.name: pictures[item.name] if item.name in pictures else _examples(item)
            for item in route.inputs
            if item.name not in self._drawers
        }
        self._engine_class = next(iter(engines.values())).engine_class

    @property
    def most(self) -> int | None:
        """How many different samples there are; None for as many as seeds."""
        return None if self._drawers else max(map(len, self._examples.values()))

    def draw(self, first: int, stop: int) -> Iterator[Pair]:
        """Yield the samples from ``first`` to before ``stop``.

        Raises:
            ExportRefused: The build gives NaN or infinity, or what is no output of the model.
        """
        for start in range(first, stop, self._size):
            rows = self._rows(start, min(start + self._size, stop))
            found = self._bench.run_onnx(rows, self._size)
            check_finite(self._engine_class, found)
            yield Pair(start, self._reference.run_onnx(rows, self._size), found)

    def _rows(self, first: int, stop: int) -> Arrays:
        seeds = range(self._first_seed + first, self._first_seed + stop)
        drawn = {name: drawer.draw(seeds) for name, drawer in self._drawers.items()}
        places = np.arange(first, stop)
        return drawn | {
            name: values[places % len(values)] for name, values in self._examples.items()
        }


def _examples(item: InputKind) -> NDArray[Any]:
    """Return examples of an input, in an order of its own; others than those that calibrate."""
    row_bytes = int(np.prod(item.example_row_shape)) * np.dtype(item.dtype).itemsize
    count = max(1, min(_MOST_EXAMPLES, _MOST_BYTES // row_bytes))
    if isinstance(item, PixelsInput | VectorInput | LatentInput):
        values = item.examples(MOST_EXAMPLES + count)[MOST_EXAMPLES:]
    else:
        values = item.examples(count)  # spread over what is allowed: all of it
    order = np.random.RandomState(list(stream_words(f"gate:{item.name}"))).permutation(count)
    mixed: NDArray[Any] = values[order]
    return mixed


def as_pictures(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels [N, H, W] or [N, H, W, C] with an axis of channels."""
    return rows if rows.ndim == 4 else rows[..., None]
