"""A served generator: checked requests in, images out, whatever carries them.

The Triton front model and the local transport both are thin shells around :class:`Generator`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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
from latentry.contract.images import encode_image
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec, Role
from latentry.contract.wire import Arrays, Rows, rows_from_request
from latentry.serving.entries.goldens import golden_inputs
from latentry.serving.entries.manifest import Manifest, read_manifest
from latentry.serving.runtime.engines import Engine

Answer = dict[str, NDArray[Any]] | LatentryError
_LOGGER = logging.getLogger(__name__)
_SEEDS_SHOWN = 100

EngineLoader = Callable[[bytes], Engine]


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
        engine_class: The engine class that draws the images.
        tally: Counts and times, for whoever reports them.
    """

    def __init__(
        self, spec: GeneratorSpec, engines: dict[str, Engine], *, max_batch_size: int
    ) -> None:
        self.spec = spec
        self.tally = Tally()
        self._engines = engines
        self._max_batch_size = max_batch_size
        self._drawer = LatentDrawer(spec.z_dim)
        self._w_avg = np.array(spec.w.w_avg, np.float32) if spec.w else None
        self.engine_class = engines[next(iter(spec.stages))].engine_class

    def warm_up(self) -> None:
        """Draw one sample and a largest batch, so that the first callers do not wait for memory."""
        goldens = golden_inputs(self.spec)
        for rows in (1, self._max_batch_size):
            self.answer([{name: np.resize(a, (rows, 1)) for name, a in goldens.items()}])
        self.tally = Tally()

    def answer(self, requests: Sequence[Arrays]) -> list[Answer]:
        """Answer requests (tensor name to array [n, ...]) that were batched together.

        A request fails as a whole, its neighbours do not. Together they must not hold more than
        the maximum batch (Triton's batcher sees to that).
        """
        answers: list[Answer] = [BadRequest("not answered")] * len(requests)
        groups: dict[str, list[tuple[int, Rows]]] = {}
        for index, request in enumerate(requests):
            try:
                rows = rows_from_request(self.spec, request, most=self._max_batch_size)
            except LatentryError as error:
                answers[index] = error
            else:
                groups.setdefault(rows.latent, []).append((index, rows))
        for group in groups.values():
            for (index, _), answer in zip(group, self._drawn(group), strict=True):
                answers[index] = answer
        return answers

    def _drawn(self, group: list[tuple[int, Rows]]) -> list[Answer]:
        try:
            return list(self._draw([rows for _, rows in group]))
        except Exception as error:
            # Whatever an engine raises must not end the process that other requests wait for.
            _LOGGER.exception("drawing failed")
            return [ServerFault(f"the engine failed: {type(error).__name__}")] * len(group)

    def _draw(self, batch: list[Rows]) -> Iterator[Answer]:
        """Answer requests that all carry the same kind of latent."""
        wanted = ["image", "peak"]
        if any("sample" in rows.image_format.tensors for rows in batch):
            wanted.append("sample")
        values = _concatenate([rows.values for rows in batch])
        controls = {
            name: _concatenate([rows.controls[name] for rows in batch])
            for name in batch[0].controls
        }
        outputs = self._run_stages(batch[0].latent, values, controls, wanted)
        finite = np.isfinite(outputs["peak"])
        start = 0
        for rows in batch:
            part = slice(start, start + rows.count)
            start += rows.count
            if not finite[part].all():
                yield self._invalid(rows, ~finite[part])
            else:
                yield self._finish(rows, {name: outputs[name][part] for name in outputs})

    def _run_stages(
        self, latent: str, values: NDArray[Any], controls: Arrays, wanted: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        if latent == "seed":
            with self.tally.time("latents"):
                values, latent = self._drawer.draw(values[:, 0]), Role.Z
        labels = {k: v for k, v in controls.items() if k == Role.CLASS_LABEL}
        with self.tally.time("engine"):
            if self._w_avg is None:
                return self._engines["generator"].run({Role.Z: values, **labels}, wanted)
            if latent == Role.Z:
                values = self._engines["mapping"].run({Role.Z: values, **labels}, [Role.W])["w"]
            w = truncate(values, self._w_avg, controls[Role.TRUNCATION_PSI])
            return self._engines["synthesis"].run({Role.W: w}, wanted)

    def _invalid(self, rows: Rows, bad: NDArray[np.bool_]) -> InvalidOutput:
        self.tally.invalid_outputs += int(bad.sum())
        if rows.latent == "seed":
            seeds = [int(seed) for seed in rows.values[bad, 0]]
            more = f" and {len(seeds) - _SEEDS_SHOWN} more" if len(seeds) > _SEEDS_SHOWN else ""
            text = f"NaN or infinity in the output for seeds {seeds[:_SEEDS_SHOWN]}{more}"
            return InvalidOutput(text, seeds=seeds)
        where = np.flatnonzero(bad).tolist()
        return InvalidOutput(f"NaN or infinity in the output for the {rows.latent} in rows {where}")

    def _finish(self, rows: Rows, outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.tally.samples += rows.count
        if not rows.image_format.encoded:
            return {name: outputs[name] for name in rows.image_format.tensors}
        with self.tally.time("encoding"):
            files = [encode_image(image, rows.image_format) for image in outputs["image"]]
        return {"encoded": np.array(files, np.object_)[:, None]}


def truncate(
    w: NDArray[np.float32], w_avg: NDArray[np.float32], psi: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return w [N, num_ws, w_dim] moved towards w_avg [w_dim] by psi [N, 1].

    ``w_avg + psi * (w - w_avg)`` (StyleGAN, Karras et al. 2019, section B), computed from the
    nearer end, so that psi 1 gives w and psi 0 gives w_avg to the bit.
    """
    weight = psi[:, :, None]
    away = w - w_avg
    return np.where(weight < 0.5, w_avg + weight * away, w - (1 - weight) * away)


def load_generator(
    folder: Path, load_engine: EngineLoader, *, manifest: Manifest | None = None
) -> Generator:
    """Return the generator of the entry in ``folder``.

    Every network is hashed as it is read and loaded from those very bytes, so what runs is what
    the manifest names, even when a file changes after the server's own verification.

    Raises:
        EntryError: A file does not match the manifest.
    """
    manifest = manifest or read_manifest(folder)
    engines = {}
    for stage in manifest.model.spec.stages:
        name = f"{stage}.onnx"
        record = manifest.model.artefacts[name]
        try:
            data = read_regular(folder / name, most=record.size)
        except OSError as error:
            raise EntryError(f"{folder / name} cannot be read: {error.strerror}") from error
        found, expected = hashlib.sha256(data).hexdigest(), record.sha256
        if found != expected:
            raise EntryError(
                f"{folder / name} was changed: its SHA-256 is {found}, the manifest says {expected}"
            )
        engines[stage] = load_engine(data)
    return Generator(manifest.model.spec, engines, max_batch_size=manifest.serving.max_batch_size)


def _concatenate(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
