from profiles.reports import example_holding, example_profile, example_slo

from latentry.profiling.estimates import Estimate
from latentry.profiling.extras import FormatFigures, StreamFigures
from latentry.profiling.points import Point
from latentry.profiling.report.comparison import compare
from latentry.profiling.report.page import report_html
from latentry.profiling.report.tables import (
    candidate_rows,
    change_rows,
    failed_requests,
    missing_figures,
    point_rows,
    show,
)
from latentry.profiling.slo.state import Candidate


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
    profile = example_profile().model_copy(update={"streams": streams, "formats": (png,)})
    assert failed_requests(profile) == ["Streams: 2 failed: cut off", "Format png: 7 failed: <no>"]
    page = report_html(profile)
    assert "Format png: 7 failed: &lt;no&gt;" in page
    assert "<td>7</td>" in page


def test_figures_are_shown_with_their_interval() -> None:
    assert show(Estimate()) == "-"
    assert show(Estimate(value=1.234)) == "1.23"
    assert show(Estimate(value=1234.5, low=1200, high=1300)) == "1234 [1200, 1300]"
    assert show(Estimate(value=12.34, low=12, high=14), short=True) == "12.3 ±1.7"
    assert show(Estimate(value=12.34, low=9, high=13), short=True) == "12.3 ±3.3"
    assert show(Estimate(value=9.876)) == "9.88"
    assert show(Estimate(value=10.0)) == "10.0"
    assert show(Estimate(value=100.0)) == "100"
    assert show(Estimate(value=0.12345), 3) == "0.123"
    assert show(Estimate(value=2.0, low=1.0)) == "2.00"
    assert show(Estimate(value=2.0, high=3.0)) == "2.00"


def test_a_sweep_has_a_row_for_each_setting() -> None:
    points = (*example_profile().points, Point(kind="request_rate", value=12.5, failure="no"))
    heading, rows = point_rows(points, "concurrency")
    assert heading == [
        *("Callers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "queue", "compute", "cores", "MiB")
    ]
    assert rows[0] == [
        *("1", "1002 [1001, 1004]", "1.00 [1.00, 1.00]", "1.00 [1.00, 1.00]", "-"),
        *("0.10", "0.50", "1.50", "100"),
    ]
    assert [row[0] for row in rows] == ["1", "2", "4"]
    heading, rows = point_rows(points, "request_rate", short=True)
    assert (heading[0], heading[-1]) == ("rate", "delayed")
    assert rows[0][:2] == ["5", "5012 ±10"]
    assert rows[0][-1] == "0.0%"
    assert rows[2] == ["12.5", "failed", *[""] * 8]


def test_what_the_server_used_is_shown_where_it_was_seen() -> None:
    (point, *_) = example_profile().points
    phases = {"queue": 1, "compute_input": 0.25, "compute_infer": 2, "compute_output": 0.5}
    there = point.model_copy(update={"server_ms": phases, "delayed_share": 0.125})
    gone = point.model_copy(update={"server_cores": None, "server_mib": None, "server_ms": {}})
    rows = point_rows([there, gone], "concurrency")[1]
    assert rows[0][5:] == ["1.00", "2.75", "1.50", "100"]
    assert rows[1][5:] == ["0.00", "0.00", "-", "-"]
    rate = there.model_copy(update={"kind": "request_rate"})
    assert point_rows([rate], "request_rate")[1][0][-1] == "12.5%"


def test_candidates_stand_by_what_they_hold() -> None:
    slo = example_slo()
    poor = example_holding(60).model_copy(update={"rate": 0.0})
    one = {**slo.candidates[0].serving, "instances": 1, "threads": 2}
    candidates = (*slo.candidates, Candidate(serving=one, holding=poor))
    heading, rows = candidate_rows(slo.model_copy(update={"candidates": candidates}))
    assert heading == [
        *("instances", "threads", "max batch", "queue delay us", "holds requests/s", "")
    ]
    assert rows == [
        ["3", "all", "32", "0", "150", "recommended"],
        ["2", "all", "32", "0", "100", "default"],
        ["2", "1", "32", "0", "not served: no memory", ""],
        ["1", "2", "32", "0", "less than 30", ""],
    ]


def test_a_change_has_a_row() -> None:
    heading, rows = change_rows(compare(example_profile(), example_profile(0.8)))
    assert heading == ["", "figure", "before", "after", "ratio", "p", ""]
    assert rows[0] == [
        *("concurrency 1", "throughput", "802.00", "1002.50", "1.250", "0.0022", "better")
    ]
    assert len(rows) == 7 * 4


def test_every_missing_figure_has_its_reason() -> None:
    points = (
        *example_profile().points[:1],
        Point(kind="batch", value=4, latency_ms={"50": Estimate(value=1.0)}),
        Point(kind="batch", value=8, failure="no place"),
    )
    assert missing_figures(points) == [
        "Callers 1: p99 needs 1000 samples, there are 7",
        "Images a request, one caller 8: no place",
    ]
