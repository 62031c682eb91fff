"""How a served model behaves under load: sweeps of concurrency, request rate and batch size.

They are driven by perf_analyzer, whose per-request export gives the latencies of every window. Our
own load generator measures what it cannot see in :mod:`latentry.profiling.extras`, and is checked
against it in :mod:`latentry.profiling.cross_check`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from latentry.contract.errors import LatentryError
from latentry.profiling.estimates import mean_estimate, needed_samples, percentile_estimate
from latentry.profiling.load.schedules import run_closed
from latentry.profiling.load.target import TritonTarget
from latentry.profiling.perf_analyzer.measurement import (
    ProfiledModel,
    measure,
    rate_arguments,
    seconds_that_fit,
)
from latentry.profiling.points import Kind, Point

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9)
"""Rates of a sweep, where none are given, as shares of the largest throughput."""

_PERCENTS = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True)
class SweepPlan:
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

    concurrencies: tuple[int, ...]
    rates: tuple[float, ...]
    batches: tuple[int, ...]
    windows: int = 6
    least_s: float = 3.0
    most_s: float = 8.0
    shares: tuple[float, ...] = SHARES
    extras: bool = True

    def seconds(self, rate: float) -> float:
        """Return how long to measure at ``rate`` requests a second so that p99 can be printed."""
        needed = 1.15 * needed_samples(99) / max(rate, 1e-9)
        return max(min(needed, self.most_s), self.least_s)


def sweep(
    profiled: ProfiledModel, plan: SweepPlan, on_step: Callable[[str], None]
) -> Iterator[Point]:
    """Measure concurrency, then request rates up to what it reached, then batches."""
    rate = _quick_rate(profiled)
    best = 0.0
    for concurrency in plan.concurrencies:
        on_step(f"{concurrency} callers")
        point = measure_point(
            profiled,
            "concurrency",
            concurrency,
            plan.seconds(rate),
            plan.windows,
            most_rate=2 * rate,
        )
        rate = point.throughput.value or rate
        best = max(best, rate)
        yield point
    for value in plan.rates or [_round_rate(best * share) for share in plan.shares]:
        on_step(f"{value:g} requests/s")
        yield measure_point(
            profiled, "request_rate", value, plan.seconds(value), plan.windows, most_rate=value
        )
    rate = _quick_rate(profiled)
    for batch in plan.batches:
        on_step(f"batches of {batch}")
        # Twice the batch may take twice the time.
        point = measure_point(
            profiled, "batch", batch, plan.seconds(rate / 2), plan.windows, most_rate=rate
        )
        rate = point.throughput.value or rate
        yield point


def measure_point(
    profiled: ProfiledModel,
    kind: Kind,
    value: float,
    seconds: float,
    windows: int,
    *,
    most_rate: float = 0.0,
) -> Point:
    """Measure one setting of a sweep; a failed request makes a point that says so.

    Args:
        profiled: What is measured.
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
        "request_rate": rate_arguments(value, "poisson"),
    }[kind]
    try:
        seconds = seconds_that_fit(profiled, seconds, most_rate * batch)
        with profiled.usage.watch() as watched:
            found = measure(profiled, load, batch, seconds, windows)
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
        latency_ms={f"{p:g}": percentile_estimate(windows_ms, p) for p in _PERCENTS},
        server_ms=found.server_ms,
        delayed_share=found.delayed_share,
        server_cores=watched.cores(*found.span_s),
        server_mib=watched.memory_mib,
        load_cores=found.load_cores,
    )


def _quick_rate(profiled: ProfiledModel) -> float:
    """Return roughly what one caller gets, in requests a second."""
    with TritonTarget(profiled.url, profiled.model, payloads=4) as target:
        return max(run_closed(target, outstanding=1, duration_s=0.4, warm_up_s=0.1).throughput, 0.5)


def _round_rate(rate: float) -> float:
    """Round to two digits, so that reports can be compared point by point."""
    return float(f"{rate:.2g}")
