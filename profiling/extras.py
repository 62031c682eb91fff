"""What perf_analyzer cannot see: chunks of streams, output formats, what the Python client adds."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

import numpy as np
from numpy.typing import NDArray

from latentry.clients.client import Client
from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.kinds.formats import FILE_FORMATS, Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.strict import Strict
from latentry.profiling.estimates import (
    Estimate,
    mean_estimate,
    median_estimate,
    percentile_estimate,
)
from latentry.profiling.load.schedules import run_closed, run_open
from latentry.profiling.load.target import ExampleInputs, TritonTarget

_STREAM_SAMPLES = 128
_STREAM_BYTES, _LEAST_SAMPLES = 64 * 2**20, 16  # large samples are fewer, to the second chunk
_WARM_UP_S = 0.5
_MOST_STREAMS = 64
_DIFFERENT_SEEDS = 64


class StreamFigures(Strict):
    """Streams of the Python client, started as a Poisson process.

    Attributes:
        samples: Images of each stream.
        streams_per_s: Streams a second, half of what is possible one after the other.
        streams: How many were measured.
        first_chunk_ms: From asking to the first chunk; by percentile.
        gap_ms: Between one chunk and the next; by percentile.
        images_per_s: Images a second of one stream alone.
        errors: How many streams failed, by text.
    """

    samples: int
    streams_per_s: float
    streams: int
    first_chunk_ms: dict[str, Estimate]
    gap_ms: dict[str, Estimate]
    images_per_s: Estimate
    errors: dict[str, int] = {}


class FormatFigures(Strict):
    """One image a request, 16 requests outstanding, by output format."""

    image_format: str
    throughput: Estimate
    answer_bytes: int
    errors: dict[str, int] = {}


class ClientOverhead(Strict):
    """What ``Client.generate`` adds to the bytes on the wire: medians of one image, idle server."""

    client_ms: Estimate
    bytes_ms: Estimate
    overhead_ms: Estimate


def measure_streams(client: Client, model: str, seconds: float) -> StreamFigures:
    """Measure first chunks and gaps of streams that start at random moments.

    Args:
        client: Asks for the streams, several at a time.
        model: Name of the model.
        seconds: Length of the measurement.
    """
    with closing(_StreamTarget(client, model)) as target:
        alone = [target.draw() for _ in range(4)][1:]
        rate = 0.5 / statistics.median(times[-1] for times in alone)
        first_counted = time.perf_counter() + _WARM_UP_S
        result = run_open(target, rate=rate, duration_s=seconds, warm_up_s=_WARM_UP_S)
        starts = [times for asked, times in target.drawn if asked >= first_counted]
    first = [np.array([times[0] for times in starts]) * 1e3]
    gaps = [np.diff(times) * 1e3 for times in starts]
    return StreamFigures(
        samples=target.samples,
        streams_per_s=rate,
        streams=len(starts),
        first_chunk_ms={f"{p:g}": percentile_estimate(first, p) for p in (50.0, 95.0)},
        gap_ms={f"{p:g}": _pooled(gaps, p) for p in (50.0, 95.0, 99.0)},
        images_per_s=mean_estimate([target.samples / times[-1] for times in alone]),
        errors=dict(result.errors),
    )


def measure_formats(
    url: str, model: str, *, rounds: int = 3, window_s: float = 0.8
) -> list[FormatFigures]:
    """Measure requests a second of every format, in rounds, so that all meet the same machine."""
    with Client(url) as client:
        formats = answered_formats(client.info(model).spec)
    throughputs: dict[str, list[float]] = {name: [] for name in formats}
    errors: dict[str, Counter[str]] = {name: Counter() for name in formats}
    with ExitStack() as stack:
        targets = {
            name: stack.enter_context(TritonTarget(url, model, image_format=name, payloads=16))
            for name in formats
        }
        for _ in range(rounds):
            for name, target in targets.items():
                result = run_closed(target, outstanding=16, duration_s=window_s, warm_up_s=0.2)
                throughputs[name].append(result.throughput)
                errors[name] += result.errors
    return [
        FormatFigures(
            image_format=name,
            throughput=mean_estimate(throughputs[name]),
            answer_bytes=round(targets[name].answer_bytes),
            errors=dict(errors[name]),
        )
        for name in formats
    ]


def answered_formats(spec: GeneratorSpec) -> list[Format]:
    """Return the formats in which a model's answers differ: one where it gives no pixels."""
    formats = [Format.RAW]
    raw = [item.tensors(Format.RAW) for item in spec.outputs]
    for image_format in FILE_FORMATS:
        if raw == [item.tensors(image_format) for item in spec.outputs]:
            continue
        with suppress(BadRequest):
            for item in spec.outputs:
                item.check_format(image_format)
            formats.append(image_format)
    return formats


def measure_client(client: Client, url: str, model: str, repeats: int = 200) -> ClientOverhead:
    """Compare ``Client.generate`` with the same bytes sent bare, one call of each in turn."""
    with TritonTarget(url, model) as target:
        examples = ExampleInputs(target.info.spec)
        whole, bare = [], []
        for turn in range(repeats + 10):
            seed = turn % _DIFFERENT_SEEDS
            arguments = examples.arguments([seed])
            start = time.perf_counter()
            client.generate(model, **arguments)
            middle = time.perf_counter()
            target.ask()
            whole.append((middle - start) * 1e3)
            bare.append((time.perf_counter() - middle) * 1e3)
    whole, bare = whole[10:], bare[10:]
    return ClientOverhead(
        client_ms=median_estimate(whole),
        bytes_ms=median_estimate(bare),
        overhead_ms=median_estimate(np.subtract(whole, bare).tolist()),
    )


class _StreamTarget:
    """Whole streams of the client; remembers when each was asked for, and its chunks since."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self._model = model
        spec = client.info(model).spec
        examples = ExampleInputs(spec)
        largest = max(examples.row_bytes, spec.row_bytes(Format.RAW))
        self.samples = max(_LEAST_SAMPLES, min(_STREAM_SAMPLES, _STREAM_BYTES // largest))
        self._arguments = examples.arguments(range(self.samples))
        self._threads = ThreadPoolExecutor(_MOST_STREAMS)
        self.drawn: list[tuple[float, list[float]]] = []

    def send(self, done: Callable[[Exception | None], None]) -> None:
        self._threads.submit(self._draw_one, done)

    def draw(self) -> list[float]:
        start = time.perf_counter()
        chunks = self._client.stream(self._model, **self._arguments)
        return [time.perf_counter() - start for _ in chunks]

    def close(self) -> None:
        self._threads.shutdown()

    def _draw_one(self, done: Callable[[Exception | None], None]) -> None:
        asked = time.perf_counter()
        try:
            self.drawn.append((asked, self.draw()))
        except LatentryError as error:
            done(error)
        else:
            done(None)


def _pooled(groups: Sequence[NDArray[np.float64]], percent: float) -> Estimate:
    """Return a percentile of all groups together, whose sizes are too small to stand alone."""
    return percentile_estimate([np.concatenate(groups)] if groups else [], percent)
