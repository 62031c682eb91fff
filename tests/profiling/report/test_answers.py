import pytest
from profiles.reports import BEST, DEFAULT, example_holding, example_profile, example_slo

from latentry.profiling.cross_check import check_agreement
from latentry.profiling.estimates import Estimate
from latentry.profiling.extras import ClientOverhead, StreamFigures
from latentry.profiling.report.answers import answers
from latentry.profiling.report.comparison import compare
from latentry.profiling.slo.answer import SloAnswer
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.state import Candidate


def said(slo: SloAnswer, **changes: object) -> list[str]:
    """Return the sentences on a search alone, some of its answer being changed."""
    profile = example_profile(slo=slo.model_copy(update=changes))
    return answers(profile.model_copy(update={"points": (), "knee": None, "cross_check": None}))


def test_a_sweep_is_summed_up() -> None:
    profile = example_profile()
    check = check_agreement(100, [1.2] * 7, [1.0] * 7, 0.25, 0.5)
    assert answers(profile.model_copy(update={"cross_check": check})) == [
        "At most 4010 [4002, 4018] requests/s of one image, with 4 callers.",
        "The knee is at 2 callers: 2000 requests/s at 0.50 ms on average.",
        "Our load generator and perf_analyzer DISAGREE at 100 requests/s: medians 1.200 [1.200, "
        "1.200] and 1.000 [1.000, 1.000] ms, ratio 1.200; they used 0.25 and 0.50 cores.",
    ]
    assert "perf_analyzer agree at 100 requests/s" in answers(profile)[2]
    # Throughput of requests at a rate, or of batches, is not what one image can have.
    rates = [point for point in profile.points if point.kind != "concurrency"]
    lines = answers(profile.model_copy(update={"points": tuple(rates)}))
    assert not any(line.startswith("At most") for line in lines)


def test_streams_and_the_client_are_summed_up() -> None:
    figures = [Estimate(value=value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    streams = StreamFigures(
        samples=128,
        streams_per_s=0.25,
        streams=3,
        first_chunk_ms={"50": figures[0], "95": figures[1]},
        gap_ms={"50": figures[2], "95": figures[3], "99": figures[4]},
        images_per_s=Estimate(),
    )
    client = ClientOverhead(client_ms=figures[4], bytes_ms=figures[3], overhead_ms=figures[0])
    lines = answers(example_profile().model_copy(update={"streams": streams, "client": client}))
    assert lines[-2:] == [
        "Streams of 128: first chunk p50 1.00 ms, gaps p50 3.00 and p95 4.00 ms, "
        "at 0.25 streams/s.",
        "The Python client adds 1.000 ms to one image on an idle server (4.000 ms without it).",
    ]


def test_a_recommendation_is_reasoned() -> None:
    assert said(example_slo()) == [
        "The running server holds p99 <= 50 ms at 90 requests/s [45, 135].",
        "The entry's own configuration, on a server of ours, holds p99 <= 50 ms at 100 requests/s "
        "[50, 150].",
        "Recommended: max_batch_size 32, max_queue_delay_microseconds 0, instances 3, threads 0; "
        "it holds p99 <= 50 ms at 150 requests/s [75, 225].",
        "Both at 122 requests/s, 2 windows in turn: 60.0 - 70.0 ms before, 30.0 - 40.0 ms with the "
        "best candidate, p = 0.0100.",
    ]


def test_what_was_not_found_is_said() -> None:
    lines = said(example_slo(), recommended=None, final=None, finished=False)
    assert lines[2:] == [
        "No configuration is recommended: none was significantly better than the entry's own.",
        "The budget ended before everything was tried; the same command goes on.",
    ]
    running = example_holding(100).model_copy(update={"rate": 0.0})
    assert said(example_slo(), running=running, candidates=()) == [
        "The running server does not hold p99 <= 50 ms at 50 requests/s or more."
    ]
    unknown = Holding(rate=9, low=8, high=None, saturation=20, probes=())
    assert said(example_slo(), running=unknown, candidates=()) == [
        "The running server holds p99 <= 50 ms at 9 requests/s [8, ?]."
    ]


@pytest.mark.parametrize(
    ("running", "serving", "busy"),
    [(79, DEFAULT, True), (81, DEFAULT, False), (126, DEFAULT, True), (79, BEST, False)],
)
def test_the_same_twice_and_far_apart_means_a_busy_machine(
    running: float, serving: dict[str, int], busy: bool
) -> None:
    lines = said(example_slo(), running=example_holding(running), running_serving=serving)
    assert any("21% apart: the machine is too busy" in line for line in lines) == busy


def test_a_baseline_is_summed_up() -> None:
    profile = example_profile(1.5)
    better = compare(profile, example_profile())
    lines = answers(profile.model_copy(update={"baseline": better}))
    assert lines[-1] == (
        "Against the baseline of 2026-01-01T00:00:00+00:00: of 28 figures 28 are significantly "
        "better, 0 worse."
    )
    worse = compare(example_profile(), profile)
    lines = answers(profile.model_copy(update={"baseline": worse}))
    assert lines[-1].endswith("of 28 figures 0 are significantly better, 28 worse.")


def test_the_oldest_measurement_of_a_search_is_said() -> None:
    slo = example_slo()
    assert not slo.oldest
    running = slo.running.model_copy(update={"measured_at": "2026-01-02"})
    old = example_holding(100).model_copy(update={"measured_at": "2026-01-01"})
    slo = slo.model_copy(
        update={
            "running": running,
            "candidates": (Candidate(serving=DEFAULT, holding=old), *slo.candidates[1:]),
            "no_search": "Only the running server was asked: why",
        }
    )
    lines = answers(example_profile(slo=slo))
    assert "The oldest of these measurements is of 2026-01-01." in lines
    assert "Only the running server was asked: why" in lines
