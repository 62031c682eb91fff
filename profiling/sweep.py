"""How a served model behaves under load: sweeps of concurrency, request rate and batch size.

They are driven by perf_analyzer, whose per-request export gives the latencies of every window. Our
own load generator is cross-checked against it here and measures what it cannot see in
:mod:`latentry.profiling.extras`.
"""

import csv
import mmap
import re
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from latentry.contract.errors import LatentryError, ServerFault
from latentry.profiling.estimates import (
    Estimate,
    mean_estimate,
    median_estimate,
    needed_samples,
    percentile_estimate,
)
from latentry.profiling.load.load import TritonTarget, run_closed, run_open
from latentry.profiling.server_usage import ServerUsage

if TYPE_CHECKING:
    from latentry.profiling.perf_analyzer.program import PerfAnalyzer

PERCENTS = (50.0, 90.0, 95.0, 99.0)
CROSS_CHECK_WINDOWS = 7
CROSS_CHECK_TOLERANCE = 0.05
CROSS_CHECK_MOST_S = 10.0  # of one window

_PERF_WINDOWS = 3  # perf_analyzer's own, of which its -p is the length ...
_PERF_STRETCH = 1.2  # ... times this (measured, 2.51)
_SENDING_THREADS = 32
_ATTEMPTS = 4
_TEXT_BYTES = 4  # of one value in the export, such as "255,"
_SPACE_SHARE = 0.25  # of what is free, for one export
_LEAST_RUN_S = 0.4  # perf_analyzer's shortest windows
_LEAST_COMPARED = 20  # requests in each window of the cross-check
_TOO_SHORT = "No valid requests recorded within time interval"
_LEAST_HEIGHT = 0.1  # of a knee; below it throughput grows all along
_ANY = "1000000"  # per cent that windows may be apart; at 999 a hiccup makes it give up
_REQUEST = re.compile(rb'"timestamp":(\d+),.*?"response_timestamps":\[(\d+)', re.DOTALL)
_BOUNDARIES = re.compile(rb'"window_boundaries":\[([\d,]+)\]')
_DELAYED = re.compile(r"([\d.]+)% of the requests were delayed")
_PHASES = {
    "Server Queue": "queue",
    "Server Compute Input": "compute_input",
    "Server Compute Infer": "compute_infer",
    "Server Compute Output": "compute_output",
    "Network+Server Send/Recv": "network",
}

Kind = Literal["concurrency", "request_rate", "batch"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Part):
    """One setting of a sweep.

    Attributes:
        kind: What is swept: ``concurrency`` (callers that wait for their answer), ``request_rate``
            (Poisson arrivals) or ``batch`` (one caller).
        value: Callers, requests a second, or images of a request.
        batch: Images of each request.
        seconds: Length of the measurement.
        requests: How many were answered in it.
        throughput: Requests a second.
        mean_ms: Mean latency.
        latency_ms: By percentile, such as ``"99"``.
        server_ms: Triton's own means of a request: ``queue``, ``compute_input``,
            ``compute_infer``, ``compute_output``, and the rest of the way, ``network``.
        delayed_share: Of requests that perf_analyzer could not send when they were due; their
            waiting is in no latency.
        server_cores: What the server's processes used of the processor; None where it is remote.
        server_mib: Their memory, shared pages counted once (PSS).
        load_cores: What perf_analyzer used.
        failure: What it said where a request failed; then there are no figures.
    """

    kind: Kind
    value: float
    batch: int = 1
    seconds: float = 0.0
    requests: int = 0
    throughput: Estimate = Estimate()
    mean_ms: Estimate = Estimate()
    latency_ms: dict[str, Estimate] = {}
    server_ms: dict[str, float] = {}
    delayed_share: float = 0.0
    server_cores: float | None = None
    server_mib: float | None = None
    load_cores: float = 0.0
    failure: str = ""


class Knee(_Part):
    """Where more callers stop paying.

    As in Kneedle (Satopaa et al., "Finding a 'Kneedle' in a Haystack", ICDCSW 2011): callers and
    throughput are brought to 0 .. 1 over the sweep; the knee is the point farthest above the
    diagonal.

    Attributes:
        concurrency: Callers at the knee.
        throughput: Requests a second there.
        mean_ms: Mean latency there.
        height: How far it is above the diagonal, 0 .. 1.
    """

    concurrency: int
    throughput: float
    mean_ms: float
    height: float


class CrossCheck(_Part):
    """Our load generator against perf_analyzer, in alternating windows at one constant rate.

    Attributes:
        rate: Requests a second of both.
        ours_ms: Median latency of each of our windows.
        perf_analyzer_ms: Likewise.
        ratio: Median of ours over median of perf_analyzer's.
        agrees: Whether the ratio is within 5 % of 1, or the intervals of the two medians overlap.
        ours_cores: What our generator used of the processor.
        perf_analyzer_cores: Likewise.
    """

    rate: float
    ours_ms: Estimate
    perf_analyzer_ms: Estimate
    ratio: float
    agrees: bool
    ours_cores: float
    perf_analyzer_cores: float


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        concurrencies: Callers of the concurrency sweep.
        rates: Requests a second; empty means ``shares`` of the largest throughput seen.
        batches: Images of one request.
        windows: Windows of each measurement; the intervals are taken over them.
        least_s: Shortest measurement of one setting.
        most_s: Longest; between the two it is as long as p99 needs.
        shares: See ``rates``.
        extras: Whether to measure streams, formats and the client, and to cross-check.
    """

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    rates: tuple[float, ...] = ()
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    windows: int = 6
    least_s: float = 3.0
    most_s: float = 8.0
    shares: tuple[float, ...] = (0.25, 0.5, 0.7, 0.8, 0.9)
    extras: bool = True

    def seconds(self, rate: float) -> float:
        """Return how long to measure at ``rate`` requests a second so that p99 can be printed."""
        needed = 1.15 * needed_samples(99) / max(rate, 1e-9)
        return max(min(needed, self.most_s), self.least_s)


@dataclass(frozen=True)
class Measurement:
    """What one run of perf_analyzer gave.

    Attributes:
        windows_ms: Latencies of each window.
        span_s: Begin and end of all windows, seconds since the epoch.
        server_ms: See :class:`Point`, as ``delayed_share`` and ``load_cores``.
    """

    windows_ms: list[NDArray[np.float64]]
    span_s: tuple[float, float]
    server_ms: dict[str, float]
    delayed_share: float
    load_cores: float

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
        return (self.span_s[1] - self.span_s[0]) / len(self.windows_ms)


@dataclass
class Bench:
    """A served model and what it takes to measure it.

    Attributes:
        tool: perf_analyzer.
        url: ``HOST:PORT``.
        model: Name of the model.
        input_file: ``perf_input.json`` of the entry.
        image_values: Values of one image, which the per-request export holds as text; 0 leaves its
            size alone.
        usage: Watches the server's processes; of none where the server is remote.
    """

    tool: "PerfAnalyzer"
    url: str
    model: str
    input_file: Path
    image_values: int = 0
    usage: ServerUsage = field(init=False)

    def __post_init__(self) -> None:
        self.usage = ServerUsage(self.url)

    def point(
        self, kind: Kind, value: float, seconds: float, windows: int, *, most_rate: float = 0.0
    ) -> Point:
        """Measure one setting of a sweep; a failed request makes a point that says so.

        Args:
            kind: What is swept.
            value: Its value.
            seconds: Length of the measurement; shorter where the export would fill the disk.
            windows: Its windows.
            most_rate: Requests a second to be reckoned with.
        """
        batch = int(value) if kind == "batch" else 1
        load = {
            "concurrency": ("--concurrency-range", f"{value:g}"),
            "batch": ("--concurrency-range", "1"),
            "request_rate": _rate_arguments(value, "poisson"),
        }[kind]
        try:
            seconds = self._seconds_that_fit(seconds, most_rate * batch)
            with self.usage.watch() as watched:
                found = self.run_perf_analyzer(load, batch, seconds, windows)
        except LatentryError as error:
            return Point(kind=kind, value=value, batch=batch, failure=str(error))
        windows_ms = found.windows_ms
        return Point(
            kind=kind,
            value=value,
            batch=batch,
            seconds=found.window_s * len(windows_ms),
            requests=sum(map(len, windows_ms)),
            throughput=mean_estimate([len(window) / found.window_s for window in windows_ms]),
            mean_ms=mean_estimate([float(window.mean()) for window in windows_ms if len(window)]),
            latency_ms={f"{p:g}": percentile_estimate(windows_ms, p) for p in PERCENTS},
            server_ms=found.server_ms,
            delayed_share=found.delayed_share,
            server_cores=watched.cores(*found.span_s),
            server_mib=watched.memory_mib,
            load_cores=found.load_cores,
        )

    def run_perf_analyzer(
        self, load: Sequence[str], batch: int, seconds: float, windows: int
    ) -> Measurement:
        """Run it once and divide what it measured into ``windows`` of equal length.

        Whether its own three windows agree is not asked (``-s``): how far ours are apart is in
        the intervals. ``--request-count`` is of no use, as 2.51 rounds the time to whole seconds.

        Raises:
            ServerFault: A request failed, or nothing was measured.
        """
        for _ in range(_ATTEMPTS):
            try:
                if (found := self._run_once(load, batch, seconds, windows)) is not None:
                    return found
            except ServerFault as error:
                if _TOO_SHORT not in str(error):
                    raise
                seconds *= 2
        raise ServerFault(
            f"perf_analyzer measured nothing in {_ATTEMPTS} attempts of {seconds:g} s; the model "
            "may be too slow for windows so short: give longer ones with --window-s"
        )

    def _seconds_that_fit(self, seconds: float, images_per_s: float) -> float:
        """Return for how long the export may grow; raises ServerFault where that is nothing."""
        bytes_per_s = images_per_s * self.image_values * _TEXT_BYTES
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if bytes_per_s * _LEAST_RUN_S > _SPACE_SHARE * free:
            raise ServerFault(
                f"not measured: perf_analyzer writes every output as text, here about "
                f"{bytes_per_s / 2**30:.1f} GiB/s, and {folder} has {free / 2**30:.1f} GiB left; "
                "set TMPDIR to a larger one"
            )
        return min(seconds, _SPACE_SHARE * free / bytes_per_s) if bytes_per_s else seconds

    def _run_once(
        self, load: Sequence[str], batch: int, seconds: float, windows: int
    ) -> Measurement | None:
        interval_ms = max(100, round(seconds * 1e3 / _PERF_WINDOWS / _PERF_STRETCH))
        with tempfile.TemporaryDirectory() as name:
            report, export = Path(name) / "report.csv", Path(name) / "requests.json"
            cpu, start = _children_cpu_s(), time.perf_counter()
            text = self.tool.run(
                *("-m", self.model, "-u", self.url, "-i", "grpc", "-b", str(batch), *load),
                *("-p", str(interval_ms), "-s", _ANY, "--input-data", str(self.input_file)),
                *("-f", str(report), "--verbose-csv", "--profile-export-file", str(export)),
                timeout_s=30 + 10 * seconds,
            )
            cores = (_children_cpu_s() - cpu) / (time.perf_counter() - start)
            if (found := _windows_from_export(export, windows)) is None:
                return None
            delayed = _DELAYED.search(text)
            return Measurement(
                windows_ms=found[0],
                span_s=found[1],
                server_ms=_server_ms(report),
                delayed_share=float(delayed[1]) / 100 if delayed else 0.0,
                load_cores=cores,
            )


def sweep(bench: Bench, plan: Plan, on_step: Callable[[str], None]) -> Iterator[Point]:
    """Measure concurrency, then request rates up to what it reached, then batches."""
    rate = _quick_rate(bench)
    best = 0.0
    for concurrency in plan.concurrencies:
        on_step(f"{concurrency} callers")
        point = bench.point(
            "concurrency", concurrency, plan.seconds(rate), plan.windows, most_rate=2 * rate
        )
        rate = point.throughput.value or rate
        best = max(best, rate)
        yield point
    for value in plan.rates or [_round_rate(best * share) for share in plan.shares]:
        on_step(f"{value:g} requests/s")
        yield bench.point("request_rate", value, plan.seconds(value), plan.windows, most_rate=value)
    rate = _quick_rate(bench)
    for batch in plan.batches:
        on_step(f"batches of {batch}")
        # Twice the batch may take twice the time.
        point = bench.point("batch", batch, plan.seconds(rate / 2), plan.windows, most_rate=rate)
        rate = point.throughput.value or rate
        yield point


def find_knee(points: Sequence[Point]) -> Knee | None:
    """Return the knee of the concurrency sweep; see :class:`Knee` for the definition.

    None where fewer than three points were measured or throughput grows all along.
    """
    good = [p for p in points if p.kind == "concurrency" and p.throughput.value and p.mean_ms.value]
    if len(good) < 3:
        return None
    callers = np.array([point.value for point in good])
    throughput = np.array([point.throughput.value or 0.0 for point in good])
    if np.ptp(callers) == 0 or np.ptp(throughput) == 0:
        return None
    heights = (throughput - throughput.min()) / np.ptp(throughput)
    heights -= (callers - callers.min()) / np.ptp(callers)
    best = int(heights.argmax())
    if heights[best] < _LEAST_HEIGHT:
        return None
    return Knee(
        concurrency=int(callers[best]),
        throughput=float(throughput[best]),
        mean_ms=good[best].mean_ms.value or 0.0,
        height=float(heights[best]),
    )


def cross_check(
    bench: Bench,
    rate: float,
    *,
    windows: int = CROSS_CHECK_WINDOWS,
    window_s: float | None = None,
) -> CrossCheck:
    """Compare our generator with perf_analyzer at one constant rate, taking turns.

    Args:
        bench: What is measured.
        rate: Requests a second.
        windows: Of each of the two.
        window_s: Their length; as :func:`cross_check_window_s` where left out.

    Raises:
        ServerFault: A request failed, or a window had none.
    """
    window_s = window_s or cross_check_window_s(rate)
    ours, theirs, ours_cores, their_cores = [], [], [], []
    with TritonTarget(bench.url, bench.model) as target:
        for turn in range(windows):
            load = _rate_arguments(rate, "constant")
            found = bench.run_perf_analyzer(load, 1, window_s, 1)
            if not len(found.windows_ms[0]):
                raise ServerFault(f"perf_analyzer had no answer in a window of {window_s:g} s")
            theirs.append(float(np.median(found.windows_ms[0])))
            their_cores.append(found.load_cores)
            result = run_open(
                target,
                rate=rate,
                duration_s=window_s,
                warm_up_s=0.3,
                arrivals="constant",
                seed=turn,
            )
            if result.errors:
                raise ServerFault(f"a request failed: {next(iter(result.errors))}")
            if not result.completed:
                raise ServerFault(f"no request was due in a window of {window_s:g} s")
            ours.append(result.percentiles_ms((50,))[50])
            ours_cores.append(result.cpu_cores)
    return check_agreement(
        rate, ours, theirs, statistics.median(ours_cores), statistics.median(their_cores)
    )


def cross_check_window_s(rate: float) -> float:
    """Return how long a window of the cross-check has to be for its median to mean something."""
    return max(1.5, _LEAST_COMPARED / rate)


def check_agreement(
    rate: float,
    ours_ms: Sequence[float],
    theirs_ms: Sequence[float],
    ours_cores: float = 0.0,
    their_cores: float = 0.0,
) -> CrossCheck:
    """Return the verdict on the windows of two generators; see :class:`CrossCheck`."""
    ours, theirs = median_estimate(ours_ms), median_estimate(theirs_ms)
    ratio = statistics.median(ours_ms) / statistics.median(theirs_ms)
    overlap = max(min(ours_ms), min(theirs_ms)) <= min(max(ours_ms), max(theirs_ms))
    if ours.low and ours.high and theirs.low and theirs.high:
        overlap = max(ours.low, theirs.low) <= min(ours.high, theirs.high)
    return CrossCheck(
        rate=rate,
        ours_ms=ours,
        perf_analyzer_ms=theirs,
        ratio=ratio,
        agrees=abs(ratio - 1) <= CROSS_CHECK_TOLERANCE or overlap,
        ours_cores=ours_cores,
        perf_analyzer_cores=their_cores,
    )


@contextmanager
def valid_inputs(repository: Path, model: str, url: str) -> Iterator[tuple[Path, Any]]:
    """Give the ``perf_input.json`` of what is being served, and its entry in the repository.

    Where the repository does not hold the served digest, the file is made from the served spec,
    and the entry is None.
    """
    from latentry.clients.client import Client
    from latentry.serving.entries.perf_input import PERF_INPUT_FILE, perf_input
    from latentry.serving.entries.repository import newest_entries

    with Client(url) as client:
        info = client.info(model)
    entries = []
    # Where there is none, or it is damaged, what is served is what counts.
    with suppress(LatentryError):
        entries = newest_entries(repository, (model,))
    if entries and entries[0].manifest.digest == info.model_digest:
        yield entries[0].folder / PERF_INPUT_FILE, entries[0]
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / PERF_INPUT_FILE
        path.write_bytes(perf_input(info.spec))
        yield path, None


def _rate_arguments(rate: float, distribution: str) -> tuple[str, ...]:
    return (
        *("--request-rate-range", f"{rate:g}", "--request-distribution", distribution),
        # Four, the default, delay requests as soon as four are slow.
        *("--max-threads", str(_SENDING_THREADS)),
    )


def _windows_from_export(
    path: Path, windows: int
) -> tuple[list[NDArray[np.float64]], tuple[float, float]] | None:
    """Return the latencies in ms of each window, and when the first began and the last ended.

    The export holds every output, too, as text: it is searched instead of parsed. None where it
    holds no request, or breaks off: for an output that a model declares and does not answer,
    2.51 writes whatever lies in its memory, and stops writing when that is a NaN.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        times = np.array(
            [(int(match[1]), int(match[2])) for match in _REQUEST.finditer(text)], np.int64
        ).reshape(-1, 2)
        bounds = _BOUNDARIES.search(text)
        edges = [int(edge) for edge in bounds[1].split(b",")] if bounds else []
    if not len(times) or len(edges) < 2:
        return None
    cuts = np.linspace(edges[0], edges[-1], windows + 1)
    place = np.searchsorted(cuts, times[:, 1], side="right") - 1
    latencies = (times[:, 1] - times[:, 0]) / 1e6
    span_s = (edges[0] / 1e9, edges[-1] / 1e9)
    return [latencies[place == turn] for turn in range(windows)], span_s


def _server_ms(report: Path) -> dict[str, float]:
    with report.open(newline="") as file:
        row = next(csv.DictReader(file), {})
    return {ours: float(row[theirs]) / 1e3 for theirs, ours in _PHASES.items() if row.get(theirs)}


def _quick_rate(bench: Bench) -> float:
    """Return roughly what one caller gets, in requests a second."""
    with TritonTarget(bench.url, bench.model, payloads=4) as target:
        return max(run_closed(target, outstanding=1, duration_s=0.4, warm_up_s=0.1).throughput, 0.5)


def _round_rate(rate: float) -> float:
    """Round to two digits, so that reports can be compared point by point."""
    return float(f"{rate:.2g}")


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
