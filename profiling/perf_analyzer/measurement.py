"""One measurement by perf_analyzer, divided into windows."""

import csv
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import ServerFault
from latentry.profiling.perf_analyzer.export_windows import windows_from_export
from latentry.profiling.perf_analyzer.program import PerfAnalyzer
from latentry.profiling.server_usage import ServerUsage

_PERF_WINDOWS = 3  # perf_analyzer's own, of which its -p is the length ...
_PERF_STRETCH = 1.2  # ... times this (measured, 2.51)
_SENDING_THREADS = 32
_ATTEMPTS = 4
_TEXT_BYTES = 4  # of one byte in the export, such as "255,"; floats take less
_SPACE_SHARE = 0.25  # of what is free, for one export
_LEAST_RUN_S = 0.4  # perf_analyzer's shortest windows
_TOO_SHORT = "No valid requests recorded within time interval"
_ANY = "1000000"  # per cent that windows may be apart; at 999 a hiccup makes it give up
_DELAYED = re.compile(r"([\d.]+)% of the requests were delayed")
_PHASES = {
    "Server Queue": "queue",
    "Server Compute Input": "compute_input",
    "Server Compute Infer": "compute_infer",
    "Server Compute Output": "compute_output",
    "Network+Server Send/Recv": "network",
}


@dataclass
class ProfiledModel:
    """A served model and what it takes to measure it.

    Attributes:
        tool: perf_analyzer.
        url: ``HOST:PORT``.
        model: Name of the model.
        input_file: ``perf_input.json`` of the entry.
        sample_bytes: Of one sample's inputs and outputs, all of which the per-request export holds
            as text; 0 leaves its size alone.
        usage: Watches the server's processes; of none where the server is remote.
    """

    tool: PerfAnalyzer
    url: str
    model: str
    input_file: Path
    sample_bytes: int = 0
    usage: ServerUsage = field(init=False)

    def __post_init__(self) -> None:
        self.usage = ServerUsage(self.url)


@dataclass(frozen=True)
class Measurement:
    """What one run of perf_analyzer gave.

    Attributes:
        windows_ms: Latencies of each window.
        span_s: Begin and end of all windows, seconds since the epoch.
        server_ms: See :class:`latentry.profiling.points.Point`, as for ``delayed_share`` and
            ``load_cores``.
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


def measure(
    profiled: ProfiledModel, load: Sequence[str], batch: int, seconds: float, windows: int
) -> Measurement:
    """Run perf_analyzer once and divide what it measured into ``windows`` of equal length.

    Whether its own three windows agree is not asked (``-s``): how far ours are apart is in
    the intervals. ``--request-count`` is of no use, as 2.51 rounds the time to whole seconds.

    Raises:
        ServerFault: A request failed, or nothing was measured.
    """
    for _ in range(_ATTEMPTS):
        try:
            if (found := _run_once(profiled, load, batch, seconds, windows)) is not None:
                return found
        except ServerFault as error:
            if _TOO_SHORT not in str(error):
                raise
            seconds *= 2
    raise ServerFault(
        f"perf_analyzer measured nothing in {_ATTEMPTS} attempts of {seconds:g} s; the model "
        "may be too slow for windows so short: give longer ones with --window-s"
    )


def rate_arguments(rate: float, distribution: str) -> tuple[str, ...]:
    """Return perf_analyzer's arguments for requests at a rate, ``poisson`` or ``constant``."""
    return (
        *("--request-rate-range", f"{rate:g}", "--request-distribution", distribution),
        # Four, the default, delay requests as soon as four are slow.
        *("--max-threads", str(_SENDING_THREADS)),
    )


def seconds_that_fit(profiled: ProfiledModel, seconds: float, images_per_s: float) -> float:
    """Return for how long the export may grow; raises ServerFault where that is nothing."""
    bytes_per_s = images_per_s * profiled.sample_bytes * _TEXT_BYTES
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if bytes_per_s * _LEAST_RUN_S > _SPACE_SHARE * free:
        raise ServerFault(
            f"not measured: perf_analyzer writes all inputs and outputs as text, here about "
            f"{bytes_per_s / 2**30:.1f} GiB/s, and {folder} has {free / 2**30:.1f} GiB left; "
            "set TMPDIR to a larger one"
        )
    return min(seconds, _SPACE_SHARE * free / bytes_per_s) if bytes_per_s else seconds


def _run_once(
    profiled: ProfiledModel, load: Sequence[str], batch: int, seconds: float, windows: int
) -> Measurement | None:
    interval_ms = max(100, round(seconds * 1e3 / _PERF_WINDOWS / _PERF_STRETCH))
    with tempfile.TemporaryDirectory() as name:
        report, export = Path(name) / "report.csv", Path(name) / "requests.json"
        cpu, start = _children_cpu_s(), time.perf_counter()
        text = profiled.tool.run(
            *("-m", profiled.model, "-u", profiled.url, "-i", "grpc", "-b", str(batch), *load),
            *("-p", str(interval_ms), "-s", _ANY, "--input-data", str(profiled.input_file)),
            *("-f", str(report), "--verbose-csv", "--profile-export-file", str(export)),
            # It also writes down every input: megabytes a request, where pictures go in.
            timeout_s=90 + 10 * seconds,
        )
        cores = (_children_cpu_s() - cpu) / (time.perf_counter() - start)
        if (found := windows_from_export(export, windows)) is None:
            return None
        delayed = _DELAYED.search(text)
        return Measurement(
            windows_ms=found[0],
            span_s=found[1],
            server_ms=_server_ms(report),
            delayed_share=float(delayed[1]) / 100 if delayed else 0.0,
            load_cores=cores,
        )


def _server_ms(report: Path) -> dict[str, float]:
    with report.open(newline="") as file:
        row = next(csv.DictReader(file), {})
    return {ours: float(row[theirs]) / 1e3 for theirs, ours in _PHASES.items() if row.get(theirs)}


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
