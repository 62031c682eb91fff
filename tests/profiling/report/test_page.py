import re

from profiles.reports import example_profile, example_slo

from latentry.profiling.points import Point
from latentry.profiling.report.page import report_html


def test_the_page_stands_alone_and_shows_everything() -> None:
    page = report_html(example_profile(slo=example_slo()))
    assert page.count("<svg") == 7
    links = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert not [link for link in links if "w3.org" not in link]
    assert "<script" not in page
    for text in ("The knee is at 2 callers", "Recommended", "not served: no memory", "p99 needs"):
        assert text in page


def test_a_page_of_the_search_alone_has_no_empty_tables() -> None:
    profile = example_profile(slo=example_slo())
    page = report_html(profile.model_copy(update={"points": (), "knee": None}))
    assert page.count("<svg") == 2
    assert "holds p99 &lt;= 50 ms at 150 requests/s" in page


def test_a_failed_point_has_no_figures() -> None:
    profile = example_profile()
    failed = Point(kind="concurrency", value=64, failure="no place")
    profile = profile.model_copy(update={"points": (*profile.points, failed)})
    assert "Callers 64: no place" in report_html(profile)
