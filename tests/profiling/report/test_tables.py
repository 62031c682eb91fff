from profiles.reports import example_profile

from latentry.profiling.estimates import Estimate
from latentry.profiling.extras import FormatFigures, StreamFigures
from latentry.profiling.report.page import report_html
from latentry.profiling.report.tables import failed_requests, show


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
