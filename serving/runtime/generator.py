"""A served generator: checked requests in, images out, whatever carries them.

The Triton front model and the local transport both are thin shells around :class:`Generator`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import (
    BadRequest,
    EntryError,
    InvalidOutput,
    LatentryError,
    ServerFault,
)
from latentry.contract.files import read_regular
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import OutputKind
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec, Route
from latentry.contract.wire import Arrays, Rows, rows_from_request
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.manifests import Build
from latentry.serving.entries.repository import Entry
from latentry.serving.runtime.engines import Engine
from latentry.serving.runtime.stage_runner import StageRunner

Answer = dict[str, NDArray[Any]] | LatentryError
_LOGGER = logging.getLogger(__name__)
_SEEDS_SHOWN = 100

EngineLoader = Callable[[bytes, Build], Engine]


@dataclass
class Tally:
    """What a generator has done since it was warm: counts, and seconds by phase; they only grow."""

    samples: int = 0
    invalid_outputs: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"latents": 0.0, "engine": 0.0, "encoding": 0.0}
    )

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the block's duration to ``phase``."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


class Generator:
    """Answers batches of requests with the networks of one entry.

    Attributes:
        spec: What the generator takes and gives.
        engine_class: The engine class that draws the samples.
        tally: Counts and times, for whoever reports them.
    """

    def __init__(
        self, spec: GeneratorSpec, engines: dict[str, Engine], *, max_batch_size: int
    ) -> None:
        self.spec = spec
        self.tally = Tally()
        self._board = StageRunner(spec, engines)
        self._max_batch_size = max_batch_size
        self._free = [item.name for item in spec.free_inputs]
        self._drawers = {
            item.name: LatentDrawer(item) for item in spec.inputs if isinstance(item, LatentInput)
        }
        self._tensors = {
            image_format: [(n, item) for item in spec.outputs for n in item.tensors(image_format)]
            for image_format in Format
        }
        self.engine_class = engines[spec.networks[0]].engine_class

    def warm_up(self) -> None:
        """Draw one sample and a largest batch, so that the first callers do not wait for memory."""
        one = example_request(self.spec, 1)
        for rows in (1, self._max_batch_size):
            self.answer([{name: np.repeat(row, rows, axis=0) for name, row in one.items()}])
        self.tally = Tally()

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer requests (tensor name to array [n, ...]) that were batched together.

        A request fails as a whole, its neighbours do not. Together they must not hold more than
        the maximum batch (Triton's batcher sees to that).
        """
        answers: list[Answer] = [BadRequest("not answered")] * len(requests)
        groups: dict[tuple[Any, ...], list[tuple[int, Rows]]] = {}
        for index, request in enumerate(requests):
            try:
                rows = rows_from_request(self.spec, request, most=self._max_batch_size)
            except LatentryError as error:
                answers[index] = error
            else:
                # Pictures of free size share a run with others of their size.
                sizes = (rows.inputs[name].shape[1:] for name in self._free if name in rows.inputs)
                key = (frozenset(rows.inputs), *sizes)
                groups.setdefault(key, []).append((index, rows))
        for (given, *_), group in groups.items():
            for (index, _), answer in zip(group, self._drawn(given, group), strict=True):
                answers[index] = answer
        return answers

    def _drawn(self, given: frozenset[str], group: list[tuple[int, Rows]]) -> list[Answer]:
        try:
            return list(self._draw(self.spec.route(given), [rows for _, rows in group]))
        except Exception as error:
            # Whatever an engine raises must not end the process that other requests wait for.
            _LOGGER.exception("drawing failed")
            return [ServerFault(f"the engine failed: {type(error).__name__}")] * len(group)

    def _draw(self, route: Route, batch: list[Rows]) -> Iterator[Answer]:
        """Answer requests that all carry the same inputs."""
        board = {
            name: _concatenate([rows.inputs[name] for rows in batch]) for name in batch[0].inputs
        }
        if route.drawn:
            seeds = _concatenate([rows.seeds for rows in batch if rows.seeds is not None])
            with self.tally.time("latents"):
                board |= {item.name: self._drawers[item.name].draw(seeds) for item in route.drawn}
        with_samples = any(rows.image_format is Format.FLOAT for rows in batch)
        with self.tally.time("engine"):
            outputs, watch = self._board.run(route, board, with_samples=with_samples)
        finite = np.isfinite(watch)
        start = 0
        for rows in batch:
            part = slice(start, start + rows.count)
            start += rows.count
            if not finite[part].all():
                yield self._invalid(rows, ~finite[part])
            else:
                yield self._finish(rows, {name: outputs[name][part] for name in outputs})

    def _invalid(self, rows: Rows, bad: NDArray[np.bool_]) -> InvalidOutput:
        self.tally.invalid_outputs += int(bad.sum())
        if rows.seeds is not None:
            seeds = [int(seed) for seed in rows.seeds[bad]]
            more = f" and {len(seeds) - _SEEDS_SHOWN} more" if len(seeds) > _SEEDS_SHOWN else ""
            text = f"NaN or infinity in the output for seeds {seeds[:_SEEDS_SHOWN]}{more}"
            return InvalidOutput(text, seeds=seeds)
        where = np.flatnonzero(bad).tolist()
        return InvalidOutput(f"NaN or infinity in the output for the inputs in rows {where}")

    def _finish(self, rows: Rows, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.tally.samples += rows.count
        return {
            name: outputs[name] if name in outputs else self._encoded(item, outputs, rows)
            for name, item in self._tensors[rows.image_format]
        }

    def _encoded(
        self, item: OutputKind, outputs: dict[str, NDArray[Any]], rows: Rows
    ) -> NDArray[Any]:
        with self.tally.time("encoding"):
            files = [item.encode(row, rows.image_format) for row in outputs[item.name]]
        return np.array(files, np.object_)[:, None]


def load_generator(entry: Entry, load_engine: EngineLoader) -> Generator:
    """Return the generator of ``entry``, run by its build; raises as :func:`load_engines`."""
    engines = load_engines(entry, load_engine)
    return Generator(entry.spec, engines, max_batch_size=entry.build.serving.max_batch_size)


def load_engines(entry: Entry, load_engine: EngineLoader) -> dict[str, Engine]:
    """Return what runs each network of an entry's build, by its name.

    Every artefact is hashed as it is read and loaded from those very bytes, so what runs is what
    the build names, even when a file changes after the server's own verification.

    Raises:
        EntryError: A file does not match its record.
    """
    engines = {}
    for network in entry.spec.networks:
        path, record = (
            entry.build_folder / f"{network}.onnx",
            entry.build.artefacts[f"{network}.onnx"],
        )
        try:
            data = read_regular(path, most=record.size)
        except OSError as error:
            raise EntryError(f"{path} cannot be read: {error.strerror}") from error
        found, expected = hashlib.sha256(data).hexdigest(), record.sha256
        if found != expected:
            raise EntryError(f"{path} was changed: its SHA-256 is {found}, it should be {expected}")
        engines[network] = load_engine(data, entry.build)
    return engines


def _concatenate(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
