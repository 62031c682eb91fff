"""The tables of a report, as headings and rows of text, and the remarks below them."""

from collections.abc import Sequence

from latentry.profiling.estimates import Estimate
from latentry.profiling.extras import FormatFigures, StreamFigures
from latentry.profiling.points import Point
from latentry.profiling.report.contents import Comparison, Profile
from latentry.profiling.slo.answer import SloAnswer
from latentry.profiling.slo.state import Candidate

Table = tuple[list[str], list[list[str]]]
"""Heading and rows."""

_SHORT_HEADINGS = {"concurrency": "callers", "request_rate": "rate", "batch": "batch"}
HEADINGS = {
    "concurrency": "Callers",
    "request_rate": "Requests/s, Poisson arrivals",
    "batch": "Images a request, one caller",
}


def point_rows(points: Sequence[Point], kind: str, *, short: bool = False) -> Table:
    """Return heading and rows of the table of one sweep; ``short`` ones fit a terminal."""
    heading = [_SHORT_HEADINGS[kind] if short else HEADINGS[kind], "requests/s"]
    heading += ["p50 ms", "p95 ms", "p99 ms", "queue", "compute", "cores", "MiB", "delayed"]
    if kind != "request_rate":
        heading.pop()
    rows = []
    for point in points:
        if point.kind != kind:
            continue
        if point.failure:
            rows.append([f"{point.value:g}", "failed", *[""] * (len(heading) - 2)])
            continue
        compute = [
            point.server_ms.get(f"compute_{name}", 0) for name in ("input", "infer", "output")
        ]
        rows.append(
            [
                f"{point.value:g}",
                show(point.throughput, short=short),
                *(show(point.latency_ms[p], short=short) for p in ("50", "95", "99")),
                f"{point.server_ms.get('queue', 0):.2f}",
                f"{sum(compute):.2f}",
                "-" if point.server_cores is None else f"{point.server_cores:.2f}",
                "-" if point.server_mib is None else f"{point.server_mib:.0f}",
                f"{point.delayed_share:.1%}",
            ][: len(heading)]
        )
    return heading, rows


def stream_rows(streams: StreamFigures) -> Table:
    """Return heading and row of the table of streams."""
    heading = [f"streams of {streams.samples}", "failed", "first chunk p50 ms", "gap p50 ms"]
    figures = (show(streams.first_chunk_ms["50"]), show(streams.gap_ms["50"]))
    return heading, [[str(streams.streams), str(sum(streams.errors.values())), *figures]]


def format_rows(formats: Sequence[FormatFigures]) -> Table:
    """Return heading and rows of the table of output formats."""
    rows = [
        [
            item.image_format,
            show(item.throughput),
            str(item.answer_bytes),
            str(sum(item.errors.values())),
        ]
        for item in formats
    ]
    return ["format, 16 outstanding", "requests/s", "bytes of an answer", "failed"], rows


def candidate_rows(slo: SloAnswer) -> Table:
    """Return heading and rows of the table of candidates, the best first."""
    heading = ["instances", "threads", "max batch", "queue delay us", "holds requests/s", ""]
    rows = []
    for item in sorted(slo.candidates, key=lambda candidate: -candidate.rate):
        serving = item.serving
        is_default = item is slo.candidates[0] or item.serving == slo.candidates[0].serving
        remark = "default" if is_default else ""
        rows.append(
            [
                str(serving["instances"]),
                str(serving["threads"] or "all"),
                str(serving["max_batch_size"]),
                str(serving["max_queue_delay_microseconds"]),
                _candidate_rate(item),
                "recommended" if serving == slo.recommended else remark,
            ]
        )
    return heading, rows


def change_rows(baseline: Comparison) -> Table:
    """Return heading and rows of the comparison with a baseline."""
    heading = ["", "figure", "before", "after", "ratio", "p", ""]
    return heading, [
        [
            f"{change.kind} {change.value:g}",
            change.metric,
            f"{change.before:.2f}",
            f"{change.after:.2f}",
            f"{change.after / change.before:.3f}" if change.before else "-",
            f"{change.p_value:.4f}",
            change.verdict,
        ]
        for change in baseline.changes
    ]


def missing_figures(points: Sequence[Point]) -> list[str]:
    """Return why figures are missing, one line for each setting."""
    lines = []
    for point in points:
        why = [item.why for item in point.latency_ms.values() if item.why]
        if point.failure:
            lines.append(f"{HEADINGS[point.kind]} {point.value:g}: {point.failure}")
        elif why:
            lines.append(f"{HEADINGS[point.kind]} {point.value:g}: {'; '.join(why)}")
    return lines


def failed_requests(profile: Profile) -> list[str]:
    """Return which streams and requests of the formats failed, one line for each error."""
    groups = {"Streams": profile.streams.errors} if profile.streams else {}
    groups |= {f"Format {item.image_format}": item.errors for item in profile.formats}
    return [
        f"{name}: {count} failed: {text}"
        for name, errors in groups.items()
        for text, count in errors.items()
    ]


def show(estimate: Estimate, digits: int = 2, *, short: bool = False) -> str:
    """Return a figure with its interval, or a dash; ``short`` gives the larger half of it only."""
    if estimate.value is None:
        return "-"
    size = abs(estimate.value)
    places = 0 if size >= 100 else 1 if size >= 10 else digits
    text = f"{estimate.value:.{places}f}"
    if estimate.low is None or estimate.high is None:
        return text
    if short:
        half = max(estimate.high - estimate.value, estimate.value - estimate.low)
        return f"{text} ±{half:.{places}f}"
    return f"{text} [{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def _candidate_rate(candidate: Candidate) -> str:
    if candidate.holding is None:
        return f"not served: {candidate.failure.splitlines()[0]}"
    if candidate.holding.rate:
        return f"{candidate.holding.rate:.0f}"
    least = min((probe.rate for probe in candidate.holding.probes), default=0.0)
    return f"less than {least:.0f}"
