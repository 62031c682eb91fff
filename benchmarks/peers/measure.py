"""What is measured of a running server, and whether its answers are right."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import psutil
from numpy.typing import NDArray
from peers.catalogue import CORES, Peer, Settings
from peers.grpc_target import GrpcTarget
from peers.http_target import HttpTarget, OnImage
from peers.networks import CHECKED_SEEDS, IMAGE_BYTES, Artefacts
from peers.servers import Server, running, wait_until_ready

from latentry.profiling.load.results import LoadResult
from latentry.profiling.load.schedules import run_closed, run_open

OUTSTANDING = 64
MOST_LEVELS, MOST_SHARE = 1, 0.001
NAN = float("nan")
_FIRST_SEED = 1000
_TRIES, _QUIET_SHARE = 3, 0.03
_HOST = "127.0.0.1"


class WrongAnswers(Exception):
    """A peer's images are not those of the network, or it answered with errors."""


@dataclass(frozen=True)
class Windows:
    """How long is measured, in seconds.

    Attributes:
        warm_up: Before each window.
        tune: Each of a peer's settings.
        saturated: 64 requests under way.
        idle: One request after another.
        open_requests: At the offered load it is measured until so many are expected ...
        open_s: ... but no longer, and no shorter, than this.
    """

    warm_up: float = 1.0
    tune: float = 3.0
    saturated: float = 4.0
    idle: float = 1.5
    open_requests: int = 1000
    open_s: tuple[float, float] = (5.0, 10.0)

    def open_seconds(self, rate: float) -> float:
        """Return how long to measure at ``rate`` requests a second."""
        shortest, longest = self.open_s
        return min(max(self.open_requests / rate, shortest), longest)


# With the heavy network 64 requests take more than a second, and end in bursts of a batch.
WINDOWS = {"small": Windows(), "heavy": Windows(warm_up=2.5, tune=6.0, saturated=10.0)}
QUICK = {
    "small": Windows(tune=2.0, saturated=2.0, idle=1.0, open_requests=400, open_s=(2.0, 4.0)),
    "heavy": Windows(warm_up=2.5, tune=5.0, saturated=5.0, idle=1.0, open_s=(5.0, 5.0)),
}


@dataclass(frozen=True)
class Answers:
    """How a peer's images differ from those of ONNX Runtime with one thread and batch 1.

    Attributes:
        levels: Largest difference of an element, alone or under load.
        share: Share of elements that differ at all.
        stable: Seeds whose image had the same bytes alone and every time under load.
        checked: Seeds that were asked for.
    """

    levels: int
    share: float
    stable: int
    checked: int

    @property
    def right(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.levels <= MOST_LEVELS and self.share <= MOST_SHARE


Target = HttpTarget | GrpcTarget


@contextmanager
def opened(
    peer: Peer,
    port: int,
    seeds: Iterable[int] | None = None,
    *,
    connections: int = OUTSTANDING,
    on_image: OnImage | None = None,
) -> Iterator[Target]:
    """Give what sends requests to ``peer``."""
    chosen = iter(itertools.count(_FIRST_SEED) if seeds is None else seeds)
    address = (_HOST, port)
    if peer.request is None:
        target: Target = GrpcTarget(address, chosen, image_bytes=IMAGE_BYTES, on_image=on_image)
    else:
        target = HttpTarget(
            address,
            peer.request,
            chosen,
            image_bytes=IMAGE_BYTES,
            connections=connections,
            on_image=on_image,
        )
    with closing(target):
        yield target


def ask(target: Target) -> None:
    """Get one image; raises what went wrong."""
    ended: SimpleQueue[Exception | None] = SimpleQueue()
    target.send(ended.put)
    if (error := ended.get(timeout=30)) is not None:
        raise error


@contextmanager
def started(
    peer: Peer, artefacts: Artefacts, settings: Settings, logs: Path
) -> Iterator[tuple[Server, float]]:
    """Give a server that has drawn its first image, and the seconds until then."""

    def first(port: int) -> None:
        with opened(peer, port, connections=1) as target:
            ask(target)

    with running(peer, artefacts, settings, logs) as server:
        yield server, wait_until_ready(server, first)


def check(peer: Peer, port: int, reference: NDArray[np.uint8]) -> Answers:
    """Ask for the checked seeds, alone and then under load, and compare every answer.

    Raises:
        WrongAnswers: There were errors, or images of another size.
    """
    images: dict[int, set[bytes]] = defaultdict(set)

    def keep(seed: int, image: bytes) -> None:
        images[seed].add(image)

    with opened(peer, port, CHECKED_SEEDS, connections=1, on_image=keep) as target:
        for _ in CHECKED_SEEDS:
            ask(target)
    with opened(peer, port, itertools.cycle(CHECKED_SEEDS), on_image=keep) as target:
        result = run_closed(target, outstanding=OUTSTANDING, duration_s=1.0, warm_up_s=0.0)
    if result.errors:
        raise WrongAnswers(f"errors under load: {dict(result.errors)}")
    return compare(images, reference)


def compare(images: Mapping[int, set[bytes]], reference: NDArray[np.uint8]) -> Answers:
    """Compare each seed's different images with that of the reference."""
    levels, different, elements = 0, 0, 0
    for expected, seed in zip(reference, CHECKED_SEEDS, strict=True):
        for image in images[seed]:
            found = np.frombuffer(image, np.uint8).reshape(expected.shape).astype(np.int16)
            differences = np.abs(found - expected)
            levels = max(levels, int(differences.max()))
            different += int(np.count_nonzero(differences))
            elements += differences.size
    stable = sum(len(images[seed]) == 1 for seed in CHECKED_SEEDS)
    return Answers(levels, different / elements, stable, len(CHECKED_SEEDS))


@dataclass(frozen=True)
class Load:
    """What one window of load gave.

    Attributes:
        images_per_s: Good answers a second that came in the window.
        due_per_s: Requests a second that should have been answered.
        latencies_ms: Of every good answer.
        errors: Texts of errors and their numbers.
        generator_share: The load generator's part of the machine's processor time.
        server_cores: What the server used, in cores.
        other_cores: What everything else on the machine used, or its host took away.
    """

    images_per_s: float
    due_per_s: float
    latencies_ms: NDArray[np.float64]
    errors: dict[str, int]
    generator_share: float
    server_cores: float
    other_cores: float

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latency in milliseconds."""
        return float(np.percentile(self.latencies_ms, percent)) if len(self.latencies_ms) else NAN


def saturate(peer: Peer, server: Server, seconds: float, warm_up: float = 1.0) -> Load:
    """Keep 64 requests under way."""
    return _load(
        peer,
        server,
        lambda t: run_closed(t, outstanding=OUTSTANDING, duration_s=seconds, warm_up_s=warm_up),
    )


def offer(peer: Peer, server: Server, rate: float, seconds: float, warm_up: float = 1.0) -> Load:
    """Send ``rate`` requests a second; every peer gets the same moments."""
    return _load(
        peer,
        server,
        lambda t: run_open(t, rate=rate, duration_s=seconds, warm_up_s=warm_up, seed=1),
    )


def idle(peer: Peer, server: Server, seconds: float) -> Load:
    """Send one request after another."""
    return _load(
        peer,
        server,
        lambda t: run_closed(t, outstanding=1, duration_s=seconds, warm_up_s=0.3),
        connections=1,
    )


def _load(
    peer: Peer,
    server: Server,
    run: Callable[[Target], LoadResult],
    connections: int = OUTSTANDING,
) -> Load:
    """Measure, and again where something else took the processor; the quietest one counts."""
    tries: list[Load] = []
    while len(tries) < _TRIES and (not tries or tries[-1].other_cores > _QUIET_SHARE * CORES):
        tries.append(_window(peer, server, run, connections))
    return min(tries, key=lambda load: load.other_cores)


def _window(
    peer: Peer, server: Server, run: Callable[[Target], LoadResult], connections: int
) -> Load:
    with opened(peer, server.port, connections=connections) as target:
        cpu, busy, start = server.cpu_s(), _busy_s(), time.monotonic()
        result = run(target)
        elapsed = time.monotonic() - start
        server_cores = (server.cpu_s() - cpu) / elapsed
        busy_cores = (_busy_s() - busy) / elapsed
    server.check()
    return Load(
        images_per_s=result.throughput,
        due_per_s=result.sent / result.seconds,
        latencies_ms=result.latencies_s * 1e3,
        errors=dict(result.errors),
        generator_share=result.cpu_cores / CORES,
        server_cores=server_cores,
        other_cores=max(0.0, busy_cores - server_cores - result.cpu_cores),
    )


def _busy_s() -> float:
    """Return the processor time of the whole machine that was not idle."""
    times = psutil.cpu_times()
    return times.user + times.system + times.irq + times.softirq + times.steal
