"""The report of a profile: JSON that is read back, CSV, one HTML page; comparison with another."""

import csv
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from latentry.contract.errors import BadRequest, NotFound
from latentry.contract.files import read_regular
from latentry.profiling.estimates import LEAST_BEYOND, Estimate, discoveries, permutation_p
from latentry.profiling.extras import ClientOverhead, FormatFigures, StreamFigures
from latentry.profiling.slo.search import Candidate, Holding, SloAnswer
from latentry.profiling.sweep import CrossCheck, Knee, Point

JSON_FILE, CSV_FILE, HTML_FILE = "report.json", "points.csv", "report.html"

METHOD = (
    "Intervals are 95 %. Throughput: Student's t-interval over the windows. Percentiles: of the "
    "requests of all windows together; the interval covers the one between two order statistics "
    "(Conover 1999, section 3.2) and the t-interval over the windows' own percentiles.",
    f"A percentile is printed where at least {LEAST_BEYOND} requests were slower than it (p99: "
    "1,000 requests).",
    "Concurrency: callers of one image who wait for their answer. Request rate: Poisson arrivals; "
    "perf_analyzer counts from when it sent a request, so what it sent late (delayed) is left out. "
    "The load generator of Latentry counts from when a request was due.",
    "The knee (Kneedle, Satopaa et al. 2011): callers and throughput are brought to 0 .. 1 over "
    "the sweep; it is the point farthest above the diagonal.",
    "Server times are Triton's own means of a request; network is the rest as the caller sees it.",
    "Memory is PSS: pages that processes share are counted once.",
)

_MOST_APART = 0.2
_MOST_BYTES = 64 * 2**20

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
figure { margin: 2rem 0 } figure svg { max-width: 100%; height: auto }
figcaption, .small { color: #555; font-size: .9rem } .bad { color: #b00020 }
"""

_SHORT_HEADINGS = {"concurrency": "callers", "request_rate": "rate", "batch": "batch"}
_HEADINGS = {
    "concurrency": "Callers",
    "request_rate": "Requests/s, Poisson arrivals",
    "batch": "Images a request, one caller",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Part):
    """One figure of two reports.

    Attributes:
        kind: See :class:`latentry.profiling.sweep.Point`.
        value: Likewise.
        metric: ``throughput``, or a percentile of the latency in ms, such as ``p50``.
        before: The baseline's figure.
        after: This report's.
        p_value: Of the two being equal (permutation test over the windows).
        significant: Whether it counts among all figures compared (5 % false discoveries).
    """

    kind: str
    value: float
    metric: str
    before: float
    after: float
    p_value: float
    significant: bool

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no significant difference``."""
        if not self.significant:
            return "no significant difference"
        more = self.after > self.before
        return "better" if more == (self.metric == "throughput") else "worse"


class Comparison(_Part):
    """This report against a baseline.

    Attributes:
        created: When the baseline was measured.
        differences: In what the two are not the same: model, engine class, configuration, machine.
        changes: Every figure that both have.
    """

    created: str
    differences: tuple[str, ...]
    changes: tuple[Change, ...]


class Profile(_Part):
    """Everything that one ``latentry profile`` found.

    Attributes:
        created: When, UTC.
        versions: Of Latentry, perf_analyzer and Python.
        machine: Cores, platform and load of the machine that the load came from.
        model: Name of the model.
        version: Its version.
        model_digest: What drew the images; ``models tune`` asks for the same.
        engine_class: Where they were drawn.
        configuration: The ``serving`` part as it was served.
        points: The sweeps.
    """

    format: Literal[1] = 1
    created: str
    versions: dict[str, str]
    machine: dict[str, Any]
    model: str
    version: str
    model_digest: str
    engine_class: str
    configuration: dict[str, int]
    method: tuple[str, ...] = METHOD
    notes: tuple[str, ...] = ()
    points: tuple[Point, ...] = ()
    knee: Knee | None = None
    cross_check: CrossCheck | None = None
    streams: StreamFigures | None = None
    formats: tuple[FormatFigures, ...] = ()
    client: ClientOverhead | None = None
    slo: SloAnswer | None = None
    baseline: Comparison | None = None


def read_profile(path: Path) -> Profile:
    """Return the report in a ``report.json``.

    Raises:
        NotFound: There is none.
        BadRequest: It is something else, or of another format.
    """
    try:
        return Profile.model_validate_json(read_regular(path, most=_MOST_BYTES))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadRequest(
            f"{path} is no report of this `latentry profile`; measure the baseline again"
        ) from error


def compare(profile: Profile, baseline: Profile) -> Comparison:
    """Compare all throughputs and latency percentiles that both reports have.

    Each by an exact permutation test over the windows, all together at 5 % false discoveries
    (Benjamini and Hochberg 1995). Windows of one run share its minute of the machine: a significant
    difference is one between the two runs, whatever made it.
    """
    known = {(point.kind, point.value): _metrics(point) for point in baseline.points}
    pairs = [
        (point, metric, known[point.kind, point.value][metric], estimate)
        for point in profile.points
        if (point.kind, point.value) in known
        for metric, estimate in _metrics(point).items()
        if metric in known[point.kind, point.value]
    ]
    p_values = [permutation_p(before.windows, after.windows) for *_, before, after in pairs]
    changes = [
        Change(
            kind=point.kind,
            value=point.value,
            metric=metric,
            before=before.value or 0.0,
            after=after.value or 0.0,
            p_value=p_value,
            significant=significant,
        )
        for (point, metric, before, after), p_value, significant in zip(
            pairs, p_values, discoveries(p_values), strict=True
        )
    ]
    names = ("model", "model_digest", "engine_class", "configuration", "versions")
    facts = [(name, getattr(baseline, name), getattr(profile, name)) for name in names]
    facts += [
        (f"machine {name}", baseline.machine.get(name), profile.machine.get(name))
        for name in ("cores", "system")
    ]
    differences = [f"{name}: {old} -> {new}" for name, old, new in facts if old != new]
    return Comparison(
        created=baseline.created, differences=tuple(differences), changes=tuple(changes)
    )


def write_report(profile: Profile, folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``points.csv`` and ``report.html``; return them by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        JSON_FILE: profile.model_dump_json(indent=1) + "\n",
        CSV_FILE: points_csv(profile.points),
        HTML_FILE: report_html(profile),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {Path(name).suffix[1:]: folder / name for name in texts}


def points_csv(points: Sequence[Point]) -> str:
    """Return one line for each point; an empty field is a figure that is not to be had."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [_csv_row(point) for point in points] or [_csv_row(Point(kind="batch", value=0))]
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows[: len(points)])
    return out.getvalue()


def report_html(profile: Profile) -> str:
    """Return one page with tables and pictures; nothing outside it is needed."""
    from latentry.profiling.report.figures import pictures, svg

    title = f"Profile of {profile.model}"
    facts = {
        "measured": profile.created,
        "version, model digest": f"{profile.version}, {profile.model_digest[:12]}",
        "engine class": profile.engine_class,
        "served with": _list(profile.configuration),
        "machine": _list(profile.machine),
        "versions": _list(profile.versions),
    }
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table(["", ""], [[name, text] for name, text in facts.items()]),
        "<h2>Answers</h2>",
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in answers(profile)),
        "</ul>",
        *(f'<p class="bad">{html.escape(note)}</p>' for note in profile.notes),
    ]
    for picture in pictures(profile):
        caption = html.escape(picture.caption)
        parts.append(
            f"<h2>{html.escape(picture.title)}</h2><figure>{svg(picture.figure)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += ["<h2>Tables</h2>", *_tables(profile), "<h2>Method</h2>", "<ul>"]
    parts += [f"<li>{html.escape(line)}</li>" for line in profile.method]
    body = "\n".join([*parts, "</ul>"])
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_CSS}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def answers(profile: Profile) -> list[str]:
    """Return what a reader wants to know first, one sentence each."""
    lines = []
    by_callers = [p for p in profile.points if p.kind == "concurrency" and p.throughput.value]
    if by_callers:
        best = max(by_callers, key=lambda point: point.throughput.value or 0)
        lines.append(
            f"At most {show(best.throughput)} requests/s of one image, with {best.value:g} callers."
        )
    if knee := profile.knee:
        lines.append(
            f"The knee is at {knee.concurrency} callers: {knee.throughput:.0f} requests/s at "
            f"{knee.mean_ms:.2f} ms on average."
        )
    if check := profile.cross_check:
        lines.append(
            f"Our load generator and perf_analyzer {'agree' if check.agrees else 'DISAGREE'} at "
            f"{check.rate:g} requests/s: medians {show(check.ours_ms, 3)} and "
            f"{show(check.perf_analyzer_ms, 3)} ms, ratio {check.ratio:.3f}; they used "
            f"{check.ours_cores:.2f} and {check.perf_analyzer_cores:.2f} cores."
        )
    if streams := profile.streams:
        lines.append(
            f"Streams of {streams.samples}: first chunk p50 {show(streams.first_chunk_ms['50'])} "
            f"ms, gaps p50 {show(streams.gap_ms['50'])} and p95 {show(streams.gap_ms['95'])} ms, "
            f"at {streams.streams_per_s:.2g} streams/s."
        )
    if client := profile.client:
        lines.append(
            f"The Python client adds {show(client.overhead_ms, 3)} ms to one image on an idle "
            f"server ({show(client.bytes_ms, 3)} ms without it)."
        )
    return [*lines, *_slo_answers(profile.slo), *_baseline_answers(profile.baseline)]


def show(estimate: Estimate, digits: int = 2, *, short: bool = False) -> str:
    """Return a figure with its interval, or a dash; ``short`` gives the larger half of it only."""
    if estimate.value is None:
        return "-"
    size = max(abs(estimate.value), 1e-9)
    places = 0 if size >= 100 else 1 if size >= 10 else digits
    text = f"{estimate.value:.{places}f}"
    if estimate.low is None or estimate.high is None:
        return text
    if short:
        half = max(estimate.high - estimate.value, estimate.value - estimate.low)
        return f"{text} ±{half:.{places}f}"
    return f"{text} [{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def show_holding(holding: Holding | None, objective: str) -> str:
    """Return what a configuration holds, in words."""
    if holding is None:
        return "-"
    if not holding.rate:
        least = min((probe.rate for probe in holding.probes), default=0.0)
        return f"does not hold {objective} at {least:.0f} requests/s or more"
    high = f"{holding.high:.0f}" if holding.high else "?"
    return f"holds {objective} at {holding.rate:.0f} requests/s [{holding.low:.0f}, {high}]"


def missing_figures(points: Sequence[Point]) -> list[str]:
    """Return why figures are missing, one line for each setting."""
    lines = []
    for point in points:
        why = [item.why for item in point.latency_ms.values() if item.why]
        if point.failure:
            lines.append(f"{_HEADINGS[point.kind]} {point.value:g}: {point.failure}")
        elif why:
            lines.append(f"{_HEADINGS[point.kind]} {point.value:g}: {'; '.join(why)}")
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


def point_rows(
    points: Sequence[Point], kind: str, *, short: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows of the table of one sweep; ``short`` ones fit a terminal."""
    heading = [_SHORT_HEADINGS[kind] if short else _HEADINGS[kind], "requests/s"]
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


def candidate_rows(slo: SloAnswer) -> tuple[list[str], list[list[str]]]:
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


def _candidate_rate(candidate: Candidate) -> str:
    if candidate.holding is None:
        return f"not served: {candidate.failure.splitlines()[0]}"
    if candidate.holding.rate:
        return f"{candidate.holding.rate:.0f}"
    least = min((probe.rate for probe in candidate.holding.probes), default=0.0)
    return f"less than {least:.0f}"


def _slo_answers(slo: SloAnswer | None) -> Iterator[str]:
    if slo is None:
        return
    objective = str(slo.objective)
    yield f"The running server {show_holding(slo.running, objective)}."
    if slo.oldest:
        yield f"The oldest of these measurements is of {slo.oldest}."
    if slo.no_search:
        yield slo.no_search
    if not slo.candidates:
        return
    default = slo.candidates[0]
    own = show_holding(default.holding, objective)
    yield f"The entry's own configuration, on a server of ours, {own}."
    apart = abs(default.rate - slo.running.rate) / max(default.rate, slo.running.rate, 1e-9)
    if _alike(default.serving, slo.running_serving) and apart > _MOST_APART:
        yield (
            f"These two are the same configuration and {apart:.0%} apart: the machine is too busy "
            "with other things for an answer; repeat the search on a quiet one."
        )
    if slo.recommended:
        best = next(item for item in slo.candidates if item.serving == slo.recommended)
        yield f"Recommended: {_list(slo.recommended)}; it {show_holding(best.holding, objective)}."
    else:
        yield "No configuration is recommended: none was significantly better than the entry's own."
    if final := slo.final:
        yield (
            f"Both at {final.rate:.0f} requests/s, {len(final.best_ms)} windows in turn: "
            f"{_range(final.default_ms)} ms before, {_range(final.best_ms)} ms with the best "
            f"candidate, p = {final.p_value:.4f}."
        )
    if not slo.finished:
        yield "The budget ended before everything was tried; the same command goes on."


def _alike(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _baseline_answers(baseline: Comparison | None) -> Iterator[str]:
    if baseline is None:
        return
    counts = {"better": 0, "worse": 0, "no significant difference": 0}
    for change in baseline.changes:
        counts[change.verdict] += 1
    yield (
        f"Against the baseline of {baseline.created}: of {len(baseline.changes)} figures "
        f"{counts['better']} are significantly better, {counts['worse']} worse."
    )
    for difference in baseline.differences:
        yield f"Not the same in both: {difference}"


def _tables(profile: Profile) -> Iterator[str]:
    for kind in _HEADINGS:
        heading, rows = point_rows(profile.points, kind)
        if rows:
            yield _table(heading, rows)
    for line in missing_figures(profile.points):
        yield f'<p class="small">{html.escape(line)}</p>'
    if streams := profile.streams:
        heading = [f"streams of {streams.samples}", "failed", "first chunk p50 ms", "gap p50 ms"]
        figures = (show(streams.first_chunk_ms["50"]), show(streams.gap_ms["50"]))
        failed = str(sum(streams.errors.values()))
        yield _table(heading, [[str(streams.streams), failed, *figures]])
    if profile.formats:
        rows = [
            [
                item.image_format,
                show(item.throughput),
                str(item.answer_bytes),
                str(sum(item.errors.values())),
            ]
            for item in profile.formats
        ]
        yield _table(["format, 16 outstanding", "requests/s", "bytes of an answer", "failed"], rows)
    for line in failed_requests(profile):
        yield f'<p class="bad">{html.escape(line)}</p>'
    if profile.slo and profile.slo.candidates:
        yield _table(*candidate_rows(profile.slo))
    if profile.baseline:
        yield _table(*change_rows(profile.baseline))


def change_rows(baseline: Comparison) -> tuple[list[str], list[list[str]]]:
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


def _metrics(point: Point) -> dict[str, Estimate]:
    found = {"throughput": point.throughput}
    found |= {f"p{percent}": estimate for percent, estimate in point.latency_ms.items()}
    return {name: item for name, item in found.items() if item.value is not None}


def _csv_row(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(point, name) for name in ("kind", "value", "batch", "seconds", "requests")
    }
    percentiles = {f"p{key}_ms": point.latency_ms.get(key) for key in ("50", "90", "95", "99")}
    figures = {"throughput": point.throughput, "mean_ms": point.mean_ms, **percentiles}
    for name, estimate in figures.items():
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            row[name + suffix] = getattr(estimate, part, None)
    phases = ("queue", "compute_input", "compute_infer", "compute_output", "network")
    row |= {f"{name}_ms": point.server_ms.get(name) for name in phases}
    for name in ("server_cores", "server_mib", "load_cores", "delayed_share", "failure"):
        row[name] = getattr(point, name)
    return row


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = [line(heading, "th")] if any(heading) else []
    return "\n".join(["<table>", *head, *(line(row, "td") for row in rows), "</table>"])


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} - {max(values):.1f}"


def import_what_it_needs() -> None:
    """Fail now, not after two minutes, where an extra is missing."""
    import matplotlib.figure  # noqa: F401
    import psutil  # noqa: F401
