from pathlib import Path

import pytest

from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.sweep import SweepPlan, measure_point, sweep


def test_a_measurement_is_as_long_as_p99_needs() -> None:
    plan = SweepPlan(least_s=1, most_s=8)
    assert plan.seconds(1e6) == 1
    assert plan.seconds(500) * 500 > 1000
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
