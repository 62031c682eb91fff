import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentry.contract.errors import BadRequest, NotFound
from latentry.profiling.estimates import Estimate, mean_estimate
from latentry.profiling.extras import FormatFigures, StreamFigures
from latentry.profiling.report.report import (
    Profile,
    answers,
    compare,
    failed_requests,
    points_csv,
    read_profile,
    report_html,
    show,
    write_report,
)
from latentry.profiling.slo.search import Candidate, Final, Holding, Objective, Probe, SloAnswer
from latentry.profiling.sweep import Kind, Knee, Point, check_agreement

DEFAULT = {"max_batch_size": 32, "max_queue_delay_microseconds": 0, "instances": 2, "threads": 0}
BEST = {**DEFAULT, "instances": 3}


def point(kind: Kind, value: float, windows: Sequence[float], failure: str = "") -> Point:
    latency = mean_estimate([1000 / window for window in windows])
    return Point(
        kind=kind,
        value=value,
        batch=int(value) if kind == "batch" else 1,
        seconds=3,
        requests=3000,
        throughput=mean_estimate(windows),
        mean_ms=latency,
        latency_ms={
            "50": latency,
            "90": latency,
            "95": latency,
            "99": Estimate(why="p99 needs 1000 samples, there are 7"),
        },
        server_ms={"queue": 0.1, "compute_infer": 0.5, "network": 0.2},
        server_cores=1.5,
        server_mib=100.0,
        failure=failure,
    )


def holding(rate: float) -> Holding:
    probes = tuple(
        Probe(
            rate=rate * share,
            requests=1000,
            errors={},
            latency_ms=Estimate(value=40 * share, low=35 * share, high=45 * share),
            load_cores=0.1,
        )
        for share in (0.5, 1.0, 1.5)
    )
    return Holding(rate=rate, low=rate / 2, high=1.5 * rate, saturation=2 * rate, probes=probes)


def make(scale: float = 1.0, slo: SloAnswer | None = None) -> Profile:
    windows = [1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 1005.0]
    points = [
        point(kind, value, [scale * value * window for window in windows])
        for kind, values in (
            ("concurrency", (1, 2, 4)),
            ("request_rate", (5, 9)),
            ("batch", (1, 2)),
        )
        for value in values
    ]
    return Profile(
        created="2026-01-01T00:00:00+00:00",
        versions={"latentry": "1"},
        machine={"cores": 2},
        model="digits",
        version="1",
        model_digest="d" * 64,
        engine_class="cpu",
        configuration=DEFAULT,
        points=tuple(points),
        knee=Knee(concurrency=2, throughput=2000, mean_ms=0.5, height=0.4),
        cross_check=check_agreement(100, [1.0] * 7, [1.01] * 7),
        slo=slo,
    )


@pytest.fixture
def slo() -> SloAnswer:
    return SloAnswer(
        objective=Objective(percent=99, limit_ms=50),
        running=holding(90),
        running_serving=DEFAULT,
        candidates=(
            Candidate(serving=DEFAULT, holding=holding(100)),
            Candidate(serving=BEST, holding=holding(150)),
            Candidate(serving={**DEFAULT, "threads": 1}, failure="no memory\nmore"),
        ),
        final=Final(rate=122, default_ms=(60, 70), best_ms=(30, 40), p_value=0.01, better=True),
        recommended=BEST,
        finished=True,
        spent_s=100,
    )


def test_a_report_survives_its_file(tmp_path: Path, slo: SloAnswer) -> None:
    profile = make(slo=slo)
    files = write_report(profile, tmp_path / "out")
    assert read_profile(files["json"]) == profile
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("report.json", "points.csv", "report.html")
    }


def test_the_page_stands_alone_and_shows_everything(slo: SloAnswer) -> None:
    page = report_html(make(slo=slo))
    assert page.count("<svg") == 7
    links = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert not [link for link in links if "w3.org" not in link]
    assert "<script" not in page
    for text in ("The knee is at 2 callers", "Recommended", "not served: no memory", "p99 needs"):
        assert text in page


def test_a_page_of_the_search_alone_has_no_empty_tables(slo: SloAnswer) -> None:
    page = report_html(make(slo=slo).model_copy(update={"points": (), "knee": None}))
    assert page.count("<svg") == 2
    assert "holds p99 &lt;= 50 ms at 150 requests/s" in page


def test_the_csv_has_a_line_for_each_point() -> None:
    rows = list(csv.DictReader(io.StringIO(points_csv(make().points))))
    assert [row["kind"] for row in rows].count("concurrency") == 3
    assert float(rows[0]["throughput_low"]) < float(rows[0]["throughput"])
    assert rows[0]["p99_ms"] == ""
    assert float(rows[0]["queue_ms"]) == 0.1
    assert points_csv(()).count("\n") == 1


def test_a_failed_point_has_no_figures() -> None:
    profile = make()
    failed = Point(kind="concurrency", value=64, failure="no place")
    profile = profile.model_copy(update={"points": (*profile.points, failed)})
    assert "Callers 64: no place" in report_html(profile)


def test_the_same_twice_is_no_change() -> None:
    found = compare(make(), make())
    assert not found.differences
    assert {change.verdict for change in found.changes} == {"no significant difference"}
    assert not [change for change in found.changes if change.metric == "p99"]


def test_a_slower_run_is_worse_in_everything() -> None:
    found = compare(make(0.8), make())
    assert {change.verdict for change in found.changes} == {"worse"}
    assert {change.metric for change in found.changes} == {"throughput", "p50", "p90", "p95"}
    assert {change.verdict for change in compare(make(1.2), make()).changes} == {"better"}


def test_what_is_not_the_same_in_both_is_said() -> None:
    other = make().model_copy(update={"configuration": BEST})
    profile = make().model_copy(update={"baseline": compare(make(), other)})
    assert any("Not the same in both: configuration" in line for line in answers(profile))


def test_another_machine_is_said() -> None:
    other = make().model_copy(update={"machine": {"cores": 4, "load": 1.0}})
    assert compare(make(), other).differences == ("machine cores: 4 -> 2",)


def test_failed_streams_and_formats_are_shown() -> None:
    streams = StreamFigures(
        samples=128,
        streams_per_s=1,
        streams=3,
        first_chunk_ms={"50": Estimate(), "95": Estimate()},
        gap_ms={"50": Estimate(), "95": Estimate(), "99": Estimate()},
        images_per_s=Estimate(),
        errors={"cut off": 2},
    )
    png = FormatFigures(
        image_format="png", throughput=Estimate(), answer_bytes=9, errors={"<no>": 7}
    )
    profile = make().model_copy(update={"streams": streams, "formats": (png,)})
    assert failed_requests(profile) == ["Streams: 2 failed: cut off", "Format png: 7 failed: <no>"]
    page = report_html(profile)
    assert "Format png: 7 failed: &lt;no&gt;" in page
    assert "<td>7</td>" in page


def test_the_oldest_measurement_of_a_search_is_said(slo: SloAnswer) -> None:
    assert not slo.oldest
    running = slo.running.model_copy(update={"measured_at": "2026-01-02"})
    old = holding(100).model_copy(update={"measured_at": "2026-01-01"})
    slo = slo.model_copy(
        update={
            "running": running,
            "candidates": (Candidate(serving=DEFAULT, holding=old), *slo.candidates[1:]),
            "no_search": "Only the running server was asked: why",
        }
    )
    lines = answers(make(slo=slo))
    assert "The oldest of these measurements is of 2026-01-01." in lines
    assert "Only the running server was asked: why" in lines


def test_no_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        read_profile(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadRequest, match="is no report of this `latentry profile`"):
        read_profile(tmp_path / "other.json")


def test_figures_are_shown_with_their_interval() -> None:
    assert show(Estimate()) == "-"
    assert show(Estimate(value=1.234)) == "1.23"
    assert show(Estimate(value=1234.5, low=1200, high=1300)) == "1234 [1200, 1300]"
    assert show(Estimate(value=12.34, low=12, high=14), short=True) == "12.3 ±1.7"
