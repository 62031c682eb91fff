import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running_server import RunningServer

from latentry.clients import Client
from latentry.contract.errors import ServerFault
from latentry.profiling.estimates import Estimate
from latentry.profiling.extras import measure_client, measure_formats, measure_streams
from latentry.profiling.perf_analyzer.program import PerfAnalyzer, find_perf_analyzer
from latentry.profiling.server_usage import ServerUsage, served_configuration
from latentry.profiling.sweep import (
    Bench,
    Plan,
    Point,
    _windows_from_export,
    check_agreement,
    cross_check,
    cross_check_window_s,
    find_knee,
    sweep,
    valid_inputs,
)

needs_perf_analyzer = pytest.mark.skipif(
    find_perf_analyzer() is None, reason="no perf_analyzer on this machine"
)


def callers(value: int, throughput: float, mean_ms: float = 1.0) -> Point:
    return Point(
        kind="concurrency",
        value=value,
        throughput=Estimate(value=throughput),
        mean_ms=Estimate(value=mean_ms),
    )


@given(limit=st.integers(2, 16), rate=st.floats(1, 1e4))
def test_the_knee_is_where_throughput_stops_growing(limit: int, rate: float) -> None:
    points = [callers(n, rate * min(n, limit)) for n in range(1, 33)]
    knee = find_knee(points)
    assert knee is not None
    assert knee.concurrency == limit
    assert knee.throughput == pytest.approx(rate * limit)


@given(rate=st.floats(1, 1e4))
def test_throughput_that_grows_all_along_has_no_knee(rate: float) -> None:
    assert find_knee([callers(n, rate * n) for n in (1, 2, 4, 8)]) is None
    assert find_knee([callers(n, rate) for n in (1, 2, 4, 8)]) is None
    assert find_knee([callers(1, rate), callers(8, 2 * rate)]) is None


def test_generators_agree_within_five_per_cent_or_where_intervals_overlap() -> None:
    assert check_agreement(100, [1.04] * 7, [1.0] * 7).agrees
    assert not check_agreement(100, [1.2] * 7, [1.0] * 7).agrees
    assert check_agreement(100, [1.2, 1.2, 1.2, 0.9], [1.0, 1.0, 1.1, 1.0]).agrees


def export(folder: Path, times: list[tuple[int, int]], edges: list[int]) -> Path:
    requests = [
        {
            "timestamp": sent,
            "request_inputs": {"seed": 1},
            "response_timestamps": [answered],
            "response_outputs": [{"image": [1, 2], "encoded": ""}],
        }
        for sent, answered in times
    ]
    path = folder / "requests.json"
    text = {"experiments": [{"requests": requests, "window_boundaries": edges}], "version": "2"}
    path.write_text(json.dumps(text, separators=(",", ":")))
    return path


def test_perf_analyzers_export_is_divided_into_windows(tmp_path: Path) -> None:
    second = 10**9
    times = [(n * second // 10, n * second // 10 + 5_000_000) for n in range(40)]
    found = _windows_from_export(export(tmp_path, times, [0, second, 2 * second, 4 * second]), 4)
    assert found is not None
    windows, span_s = found
    assert span_s == (0, 4)
    assert [len(window) for window in windows] == [10, 10, 10, 10]
    assert np.concatenate(windows) == pytest.approx(5.0)


def test_an_export_that_breaks_off_is_noticed(tmp_path: Path) -> None:
    path = export(tmp_path, [(0, 5)] * 20, [0, 10])
    path.write_bytes(path.read_bytes()[:-40])
    assert _windows_from_export(path, 2) is None
    path.write_bytes(b"")
    assert _windows_from_export(path, 2) is None
    assert _windows_from_export(tmp_path / "nothing.json", 2) is None
    assert _windows_from_export(export(tmp_path, [], [0, 10]), 2) is None


def test_a_measurement_is_as_long_as_p99_needs() -> None:
    plan = Plan(least_s=1, most_s=8)
    assert plan.seconds(1e6) == 1
    assert plan.seconds(500) * 500 > 1000
    assert plan.seconds(1) == 8


def test_a_window_of_the_cross_check_has_requests() -> None:
    assert cross_check_window_s(500) == 1.5
    assert cross_check_window_s(2) == 10


def test_an_export_never_fills_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 2**30))
    tool = PerfAnalyzer(Path("none"), {})
    large = Bench(tool, "render-3:8001", "large", Path("none"), 3 * 2**20)
    assert large._seconds_that_fit(8, 4) == pytest.approx(2**28 / (4 * 12 * 2**20))
    assert large._seconds_that_fit(0.5, 4) == 0.5
    with pytest.raises(ServerFault, match="1.0 GiB left; set TMPDIR"):
        large._seconds_that_fit(8, 100)
    point = large.point("concurrency", 8, 3, 6, most_rate=100)
    assert point.failure.startswith("not measured: perf_analyzer writes every output as text")
    small = Bench(tool, "render-3:8001", "digits", Path("none"), 1024)
    assert small._seconds_that_fit(8, 1000) == 8


@pytest.fixture
def bench(triton: RunningServer, repository: Path) -> Bench:
    tool = find_perf_analyzer()
    assert tool is not None
    return Bench(tool, triton.url, "digits", repository / "digits" / "1" / "perf_input.json")


@needs_perf_analyzer
@pytest.mark.server
def test_every_setting_of_a_sweep_is_measured(bench: Bench) -> None:
    plan = Plan((1, 2, 8), (20.0,), (1, 32), windows=4, least_s=0.6, most_s=0.8)
    steps: list[str] = []
    points = list(sweep(bench, plan, steps.append))
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


@needs_perf_analyzer
@pytest.mark.server
def test_a_failed_request_is_reported(bench: Bench, tmp_path: Path) -> None:
    bench.input_file = tmp_path / "bad.json"
    bench.input_file.write_text('{"data": [{"seed": [1], "class_label": [99]}]}')
    point = bench.point("concurrency", 2, 0.5, 2)
    assert point.throughput.value is None
    assert "class_label in row 0 is 99" in point.failure


@needs_perf_analyzer
@pytest.mark.server
def test_both_generators_measure_the_same(bench: Bench) -> None:
    check = cross_check(bench, 50, windows=3, window_s=0.5)
    assert 0.2 < check.ratio < 5  # short windows, and perhaps a busy machine: of the same kind
    assert len(check.ours_ms.windows) == 3
    assert check.ours_cores < 0.5


@pytest.mark.server
def test_streams_formats_and_the_clients_share(triton: RunningServer) -> None:
    with Client(triton.url) as client:
        streams = measure_streams(client, "digits", 1.0)
        overhead = measure_client(client, triton.url, "digits", repeats=30)
    assert not streams.errors
    assert streams.streams >= 1
    assert streams.images_per_s.value is not None
    assert streams.gap_ms["50"].value or "needs" in streams.gap_ms["50"].why
    assert overhead.client_ms.value is not None
    assert overhead.bytes_ms.value is not None
    assert overhead.client_ms.value > 0.5 * overhead.bytes_ms.value  # more on a quiet machine
    formats = measure_formats(triton.url, "digits", rounds=2, window_s=0.3)
    assert [item.image_format for item in formats] == ["raw", "png", "jpeg", "webp"]
    assert [item.errors for item in formats] == [{}] * 4
    assert all(item.throughput.value is not None for item in formats)
    assert formats[0].answer_bytes > 32 * 32


@pytest.mark.server
def test_inputs_are_the_entrys_where_it_is_served(
    triton: RunningServer, repository: Path, tmp_path: Path
) -> None:
    with valid_inputs(repository, "digits", triton.url) as (path, entry):
        assert path == repository / "digits" / "1" / "perf_input.json"
        assert entry is not None
        own = path.read_text()
    with valid_inputs(tmp_path, "digits", triton.url) as (path, entry):
        assert entry is None
        assert path.read_text() == own


@pytest.mark.server
def test_what_the_server_runs_with_and_uses(triton: RunningServer) -> None:
    configuration = served_configuration(triton.url, "digits")
    assert configuration["instances"] == 1
    assert configuration["max_batch_size"] == 32
    assert configuration["max_queue_size"] == 0
    with ServerUsage(triton.url).watch() as watched, Client(triton.url) as client:
        client.generate("textures", seeds=range(200))
    begin, end = watched.times_s[0], watched.times_s[-1]
    assert watched.cores(begin, end) is not None
    assert watched.memory_mib is not None


def test_a_remote_server_is_not_watched() -> None:
    with ServerUsage("render-3:8001").watch() as watched:
        pass
    assert watched.memory_mib is None
    assert watched.cores(0, 1) is None
