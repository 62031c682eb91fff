import pytest

from latentry.profiling.report.contents import Change


@pytest.mark.parametrize(
    ("metric", "after", "significant", "verdict"),
    [
        ("throughput", 2.0, True, "better"),
        ("throughput", 0.5, True, "worse"),
        ("p99", 2.0, True, "worse"),
        ("p99", 0.5, True, "better"),
        ("p99", 0.5, False, "no significant difference"),
    ],
)
def test_more_throughput_and_less_latency_are_better(
    metric: str, after: float, significant: bool, verdict: str
) -> None:
    change = Change(
        kind="batch",
        value=1,
        metric=metric,
        before=1.0,
        after=after,
        p_value=0.01,
        significant=significant,
    )
    assert change.verdict == verdict
