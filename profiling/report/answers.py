"""What a reader wants to know first, in sentences."""

from collections.abc import Iterator, Sequence
from typing import Any

from latentry.profiling.report.contents import Comparison, Profile
from latentry.profiling.report.tables import show
from latentry.profiling.slo.answer import SloAnswer
from latentry.profiling.slo.held_rate import Holding

_MOST_APART = 0.2


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


def listed(values: dict[str, Any]) -> str:
    """Return names and values in one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _show_holding(holding: Holding | None, objective: str) -> str:
    """Return what a configuration holds, in words."""
    if holding is None:
        return "-"
    if not holding.rate:
        least = min((probe.rate for probe in holding.probes), default=0.0)
        return f"does not hold {objective} at {least:.0f} requests/s or more"
    high = f"{holding.high:.0f}" if holding.high else "?"
    return f"holds {objective} at {holding.rate:.0f} requests/s [{holding.low:.0f}, {high}]"


def _slo_answers(slo: SloAnswer | None) -> Iterator[str]:
    if slo is None:
        return
    objective = str(slo.objective)
    yield f"The running server {_show_holding(slo.running, objective)}."
    if slo.oldest:
        yield f"The oldest of these measurements is of {slo.oldest}."
    if slo.no_search:
        yield slo.no_search
    if not slo.candidates:
        return
    default = slo.candidates[0]
    own = _show_holding(default.holding, objective)
    yield f"The entry's own configuration, on a server of ours, {own}."
    apart = abs(default.rate - slo.running.rate) / max(default.rate, slo.running.rate, 1e-9)
    if _alike(default.serving, slo.running_serving) and apart > _MOST_APART:
        yield (
            f"These two are the same configuration and {apart:.0%} apart: the machine is too busy "
            "with other things for an answer; repeat the search on a quiet one."
        )
    if slo.recommended:
        best = next(item for item in slo.candidates if item.serving == slo.recommended)
        held = _show_holding(best.holding, objective)
        yield f"Recommended: {listed(slo.recommended)}; it {held}."
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


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.1f} - {max(values):.1f}"
