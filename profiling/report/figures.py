"""The pictures of a profile, drawn with matplotlib."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latentry.profiling.estimates import Estimate
from latentry.profiling.points import Point
from latentry.profiling.report.contents import Profile
from latentry.profiling.slo.answer import SloAnswer
from latentry.profiling.slo.held_rate import Holding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"50": "#1b6ca8", "95": "#e08e0b", "99": "#b00020"}
_PHASES = {
    "network": ("network and client", "#9e9e9e"),
    "queue": ("queue", "#e08e0b"),
    "compute_input": ("input", "#7fb069"),
    "compute_infer": ("computing", "#1b6ca8"),
    "compute_output": ("output", "#6a4c93"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "latentry",
}


@dataclass(frozen=True)
class Picture:
    """A figure with what stands above and below it."""

    title: str
    caption: str
    figure: "Figure"


def pictures(profile: Profile) -> list[Picture]:
    """Return the pictures for which there are figures."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        found = []
        callers = _of_kind(profile.points, "concurrency")
        rates = _of_kind(profile.points, "request_rate")
        batches = _of_kind(profile.points, "batch")
        if len(callers) > 1:
            found.append(_throughput_and_latency(callers, profile))
        if len(rates) > 1:
            found.append(_latency_by_rate(rates))
        if callers:
            found.append(_where_time_goes(callers, rates))
        if len(batches) > 1:
            found.append(_batches(batches))
        if any(point.server_cores is not None for point in callers):
            found.append(_resources(callers, int(profile.machine.get("cores", 0))))
        if profile.slo:
            found.append(_held_rates(profile.slo))
            if len(profile.slo.candidates) > 1:
                found.append(_candidates(profile.slo))
        return found


def svg(figure: "Figure") -> str:
    """Return a figure as an SVG element to stand inside a page."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def _throughput_and_latency(points: Sequence[Point], profile: Profile) -> Picture:
    figure, (axes,) = _figure(1)
    throughput = [point.throughput.value or 0 for point in points]
    for percent, colour in _COLOURS.items():
        chosen = [(x, p) for x, p in zip(throughput, points, strict=True) if _has(p, percent)]
        if chosen:
            _bars(
                axes,
                [x for x, _ in chosen],
                [p.latency_ms[percent] for _, p in chosen],
                f"p{percent}",
                colour,
                [p.throughput for _, p in chosen],
            )
    for x, point in zip(throughput, points, strict=True):
        low = point.latency_ms["50"].value if _has(point, "50") else point.mean_ms.value
        axes.annotate(
            f"{point.value:g}", (x, low or 0), (0, -14), textcoords="offset points", ha="center"
        )
    if knee := profile.knee:
        axes.axvline(knee.throughput, color="#444", linestyle=":", linewidth=1)
        axes.annotate(
            f"knee: {knee.concurrency} callers",
            (knee.throughput, 1),
            (4, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color="#444",
        )
    axes.set(xlabel="throughput, requests/s", ylabel="latency, ms", yscale="log", xlim=(0, None))
    axes.set_ylim(axes.get_ylim()[0] * 0.7, None)  # room for the numbers of callers
    _plain_log(axes)
    axes.legend(loc="upper left")
    return Picture(
        "Throughput and latency",
        "One point for each number of callers (written below it), each waiting for its answer. "
        "Bars are 95 % intervals.",
        figure,
    )


def _latency_by_rate(points: Sequence[Point]) -> Picture:
    figure, (axes,) = _figure(1)
    for percent, colour in _COLOURS.items():
        chosen = [point for point in points if _has(point, percent)]
        if chosen:
            estimates = [point.latency_ms[percent] for point in chosen]
            _bars(axes, [point.value for point in chosen], estimates, f"p{percent}", colour)
    axes.set(xlabel="requests/s that arrive at random", ylabel="latency, ms", yscale="log")
    axes.set_xlim(0, None)
    _plain_log(axes)
    axes.legend(loc="upper left")
    return Picture(
        "Latency at a rate",
        "Poisson arrivals, by perf_analyzer, up to 90 % of the largest throughput. Requests that "
        "it sent late count from when they were sent.",
        figure,
    )


def _where_time_goes(callers: Sequence[Point], rates: Sequence[Point]) -> Picture:
    groups = [("callers", callers), ("requests/s", rates)]
    groups = [(name, [p for p in points if p.server_ms]) for name, points in groups if points]
    figure, axes = _figure(len(groups))
    for place, (name, points) in zip(axes, groups, strict=True):
        bottom = np.zeros(len(points))
        for phase, (label, colour) in _PHASES.items():
            values = np.array([point.server_ms.get(phase, 0.0) for point in points])
            ticks = [f"{point.value:g}" for point in points]
            place.bar(ticks, values, 0.7, bottom, label=label, color=colour)
            bottom += values
        place.set(xlabel=name, ylabel="mean time of a request, ms")
        place.grid(visible=False, axis="x")
    top = max(place.get_ylim()[1] for place in axes)
    for place in axes:
        place.set_ylim(0, top)
    axes[0].legend(loc="upper left")
    return Picture(
        "Where the time goes",
        "Triton's own means. Time in the queue that grows while computing does not means that more "
        "instances or larger batches may help; computing that grows means that batches do.",
        figure,
    )


def _batches(points: Sequence[Point]) -> Picture:
    figure, (left, right) = _figure(2)
    sizes = [point.value for point in points]
    images = [
        Estimate(
            value=(p.throughput.value or 0) * p.batch,
            low=None if p.throughput.low is None else p.throughput.low * p.batch,
            high=None if p.throughput.high is None else p.throughput.high * p.batch,
        )
        for p in points
    ]
    _bars(left, sizes, images, "", "#1b6ca8")
    left.set(xlabel="images a request", ylabel="images/s", ylim=(0, None))
    for percent in ("50", "95"):
        chosen = [point for point in points if _has(point, percent)]
        if chosen:
            estimates = [point.latency_ms[percent] for point in chosen]
            label, colour = f"p{percent}", _COLOURS[percent]
            _bars(right, [point.value for point in chosen], estimates, label, colour)
    right.set(xlabel="images a request", ylabel="latency, ms", ylim=(0, None))
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    return Picture("Batches", "One caller, who waits for each answer.", figure)


def _resources(points: Sequence[Point], cores: int) -> Picture:
    figure, (left, right) = _figure(2)
    seen = [point for point in points if point.server_cores is not None]
    callers = [f"{point.value:g}" for point in seen]
    server = [point.server_cores or 0 for point in seen]
    load = [point.load_cores for point in seen]
    left.bar(callers, server, 0.7, label="server", color="#1b6ca8")
    left.bar(callers, load, 0.7, server, label="perf_analyzer", color="#9e9e9e")
    if cores:
        left.axhline(cores, color="#b00020", linestyle=":", linewidth=1)
        left.set_ylim(0, cores * 1.25)
        left.annotate(
            f"{cores} cores",
            (0, cores),
            (2, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#b00020",
        )
    left.set(xlabel="callers", ylabel="processor cores used")
    left.legend(loc="upper right", ncols=2)
    right.bar(callers, [point.server_mib or 0 for point in seen], 0.7, color="#1b6ca8")
    right.set(xlabel="callers", ylabel="server memory (PSS), MiB")
    for axes in (left, right):
        axes.grid(visible=False, axis="x")
    return Picture("Processor and memory", "Of tritonserver and its model processes.", figure)


def _held_rates(slo: SloAnswer) -> Picture:
    figure, (axes,) = _figure(1)
    shown: list[tuple[str, Holding | None, str]] = [("running server", slo.running, "#9e9e9e")]
    if slo.candidates:
        shown.append(("entry's own", slo.candidates[0].holding, "#1b6ca8"))
        best = max(slo.candidates, key=lambda item: item.rate)
        if best is not slo.candidates[0]:
            shown.append(("best candidate", best.holding, "#7fb069"))
    for label, holding, colour in shown:
        probes = sorted(holding.probes if holding else (), key=lambda probe: probe.rate)
        probes = [probe for probe in probes if probe.latency_ms.value is not None]
        if probes:
            rates = [probe.rate for probe in probes]
            _bars(axes, rates, [probe.latency_ms for probe in probes], label, colour)
    limit = slo.objective.limit_ms
    axes.axhline(limit, color="#b00020", linestyle=":", linewidth=1)
    axes.annotate(
        f"{limit:g} ms",
        (0, limit),
        (2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color="#b00020",
    )
    axes.set(
        xlabel="requests/s that arrive at random",
        ylabel=f"p{slo.objective.percent:g} of the latency, ms",
        yscale="log",
        xlim=(0, None),
    )
    _plain_log(axes)
    axes.legend(loc="upper left")
    return Picture(
        "What is held",
        f"Every rate that was tried; {slo.objective} is held below the dotted line. Latency counts "
        "from when a request was due.",
        figure,
    )


def _candidates(slo: SloAnswer) -> Picture:
    items = sorted(slo.candidates, key=lambda item: item.rate)
    figure, (axes,) = _figure(1, height=1.2 + 0.28 * len(items))
    default = slo.candidates[0].serving
    for place, item in enumerate(items):
        colour = "#1b6ca8" if item.serving == default else "#9e9e9e"
        colour = "#7fb069" if item.serving == slo.recommended else colour
        if item.rate:
            axes.barh(place, item.rate, 0.7, color=colour)
            continue
        least = min((p.rate for p in item.holding.probes), default=0.0) if item.holding else 0.0
        axes.annotate(f"less than {least:.0f}", (0, place), (3, -4), textcoords="offset points")
    labels = [
        f"{s['instances']} x {s['threads'] or 'all'}, batch {s['max_batch_size']}, "
        f"{s['max_queue_delay_microseconds']} us"
        for s in (item.serving for item in items)
    ]
    axes.set_yticks(range(len(items)), labels)
    axes.set_ylim(-0.6, len(items) - 0.4)
    axes.set(xlabel=f"requests/s that hold {slo.objective}")
    axes.grid(visible=False, axis="y")
    return Picture(
        "Candidates",
        "Instances x threads, largest batch, queue delay. Blue is the entry's own configuration, "
        "green the recommended one; a candidate that did not hold what the best one before it held "
        "was not measured further.",
        figure,
    )


def _bars(
    axes: Any,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    label: str,
    colour: str,
    x_estimates: Sequence[Estimate] = (),
) -> None:
    """Draw a line through figures, with their intervals."""
    style = {"marker": "o", "markersize": 4, "linewidth": 1.5, "capsize": 2, "elinewidth": 1}
    y = [estimate.value for estimate in estimates]
    spread = {"yerr": _distances(estimates)}
    if x_estimates:
        spread["xerr"] = _distances(x_estimates)
    axes.errorbar(x, y, **spread, **style, color=colour, label=label)


def _distances(estimates: Sequence[Estimate]) -> Any:
    """Return how far the ends of the intervals are from the figures [2, N]."""
    pairs = []
    for estimate in estimates:
        value = estimate.value or 0.0
        low = value if estimate.low is None else estimate.low
        high = value if estimate.high is None else estimate.high
        # A logarithmic axis ends where an interval reaches zero.
        pairs.append((max(0.0, value - max(low, value / 10)), max(0.0, high - value)))
    return np.array(pairs).T


def _figure(columns: int, height: float = 3.6) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def _plain_log(axes: Any) -> None:
    """Write 1, 2, 5, 10 on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _of_kind(points: Sequence[Point], kind: str) -> list[Point]:
    return [point for point in points if point.kind == kind and not point.failure]


def _has(point: Point, percent: str) -> bool:
    return percent in point.latency_ms and point.latency_ms[percent].value is not None
