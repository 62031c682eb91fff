import pytest

from latentry.contract.errors import BadRequest
from latentry.profiling.slo.objective import Objective


@pytest.mark.parametrize(
    ("text", "percent", "limit_ms"),
    [("p99=50ms", 99, 50), ("p95=0.2s", 95, 200), ("p99.9=900us", 99.9, 0.9)],
)
def test_an_objective_is_read(text: str, percent: float, limit_ms: float) -> None:
    objective = Objective.parse(text)
    assert objective.percent == percent
    assert objective.limit_ms == pytest.approx(limit_ms)


BAD = ["p99", "99=50ms", "p100=5ms", "p0=5ms", "p99=50", "p99=0ms", "", f"p99.{'9' * 20}=5ms"]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_objective_says_how_to_write_one(text: str) -> None:
    with pytest.raises(BadRequest, match="write p99=50ms"):
        Objective.parse(text)
