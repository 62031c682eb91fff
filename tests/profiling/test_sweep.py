from pathlib import Path

import pytest

from latentry.profiling import sweep as sweeps
from latentry.profiling.estimates import Estimate
from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.perf_analyzer.program import PerfAnalyzer
from latentry.profiling.points import Kind, Point
from latentry.profiling.sweep import SweepPlan, measure_point, sweep


def test_a_measurement_is_as_long_as_p99_needs() -> None:
    plan = SweepPlan((), (), (), least_s=1, most_s=8)
    assert plan.seconds(1e6) == 1
    assert plan.seconds(500) * 500 == pytest.approx(1150)  # 15 % more than needed
    assert plan.seconds(1) == 8


@pytest.mark.server
def test_every_setting_of_a_sweep_is_measured(profiled: ProfiledModel) -> None:
    plan = SweepPlan((1, 2, 8), (20.0,), (1, 32), windows=4, least_s=0.6, most_s=0.8)
    steps: list[str] = []
    points = list(sweep(profiled, plan, steps.append))
    assert steps == [
        *("1 callers", "2 callers", "8 callers", "20 requests/s", "batches of 1", "batches of 32")
    ]
    assert [(point.kind, point.value) for point in points] == [
        *(("concurrency", 1), ("concurrency", 2), ("concurrency", 8)),
        *(("request_rate", 20), ("batch", 1), ("batch", 32)),
    ]
    for point in points:
        assert not point.failure
        assert point.throughput.value is not None
        assert len(point.throughput.windows) == 4
        assert point.requests == pytest.approx(point.throughput.value * point.seconds)
        assert point.server_ms["compute_infer"] > 0
        assert point.server_cores is not None
        assert 0 < point.server_cores < 64
        assert point.server_mib is not None
        assert point.server_mib > 50
    rate = points[3]
    assert rate.throughput.value == pytest.approx(20, abs=12)
    assert rate.latency_ms["99"].value is None
    assert "p99 needs 1000 samples" in rate.latency_ms["99"].why


@pytest.mark.server
def test_a_failed_request_is_reported(profiled: ProfiledModel, tmp_path: Path) -> None:
    profiled.input_file = tmp_path / "bad.json"
    profiled.input_file.write_text('{"data": [{"seed": [1], "class_label": [99]}]}')
    point = measure_point(profiled, "concurrency", 2, 0.5, 2)
    assert point.throughput.value is None
    assert "class_label in row 0 is 99" in point.failure


class Measured:
    """Stand in for perf_analyzer: callers get 100 requests/s each, to 350; batches ever fewer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[Kind, float, float, float]] = []
        monkeypatch.setattr(sweeps, "measure_point", self.point)
        monkeypatch.setattr(sweeps, "_quick_rate", lambda _: 80.0)

    def point(
        self, _: object, kind: Kind, value: float, seconds: float, windows: int, *, most_rate: float
    ) -> Point:
        assert windows == 6
        self.asked.append((kind, value, round(seconds, 3), most_rate))
        if value == 4:
            return Point(kind=kind, value=value, failure="no")
        rate = {"concurrency": min(100 * value, 350 - value), "batch": 80 / value}.get(kind, value)
        return Point(kind=kind, value=value, throughput=Estimate(value=rate))


def test_a_sweep_goes_by_what_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch)
    plan = SweepPlan((1, 2, 4, 8, 16), (), (1, 2, 4), shares=(0.5, 0.9), least_s=0.1, most_s=1e4)
    model = ProfiledModel(PerfAnalyzer(Path("none"), {}), "render-3:8001", "digits", Path("none"))
    points = list(sweep(model, plan, lambda _: None))
    needed = 1150  # requests, for p99
    assert measured.asked == [
        # As long as the rate of the one before needs; where that failed, of the last that did not.
        ("concurrency", 1, round(needed / 80, 3), 160),
        ("concurrency", 2, round(needed / 100, 3), 200),
        ("concurrency", 4, round(needed / 200, 3), 400),
        ("concurrency", 8, round(needed / 200, 3), 400),
        ("concurrency", 16, round(needed / 342, 3), 684),
        # Shares of the largest throughput, 342, rounded to two digits.
        ("request_rate", 170, round(needed / 170, 3), 170),
        ("request_rate", 310, round(needed / 310, 3), 310),
        ("batch", 1, round(needed / 40, 3), 80),
        ("batch", 2, round(needed / 40, 3), 80),
        ("batch", 4, round(needed / 20, 3), 40),
    ]
    assert [(point.kind, point.value) for point in points] == [item[:2] for item in measured.asked]


def test_rates_that_are_given_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch)
    plan = SweepPlan((), (12.5, 333.0), ())
    model = ProfiledModel(PerfAnalyzer(Path("none"), {}), "render-3:8001", "digits", Path("none"))
    assert len(list(sweep(model, plan, lambda _: None))) == 2
    assert [value for _, value, *_ in measured.asked] == [12.5, 333.0]
