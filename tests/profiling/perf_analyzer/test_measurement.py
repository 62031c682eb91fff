import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentry.contract.errors import ServerFault
from latentry.profiling.perf_analyzer.measurement import (
    Measurement,
    ProfiledModel,
    measure,
    rate_arguments,
    seconds_that_fit,
)
from latentry.profiling.perf_analyzer.program import PerfAnalyzer
from latentry.profiling.sweep import measure_point

SECOND = 10**9
# What a real one writes, as far as it is read.
STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
attempts = json.loads((folder / "attempts.json").read_text())
attempt = attempts[min(len((folder / "calls").read_text().splitlines()), len(attempts)) - 1]
given = dict(zip(sys.argv[1:], sys.argv[2:]))
open(given["-f"], "w").write("Concurrency,Server Queue,Server Compute Infer\\n1,250,1500\\n")
if attempt["times"] is not None:
    times = attempt["times"]
    requests = [{{"timestamp": a, "x": "", "response_timestamps": [b]}} for a, b in times]
    text = {{"experiments": [{{"requests": requests, "window_boundaries": attempt["edges"]}}]}}
    open(given["--profile-export-file"], "w").write(json.dumps(text, separators=(",", ":")))
print(attempt["says"])
sys.exit(attempt["code"])
"""


def attempt(**changes: Any) -> dict[str, Any]:
    """Return what the stand-in does: 8 requests of 5 ms within 2 s, a quarter of them late."""
    sent = [10 * SECOND + n * SECOND // 4 for n in range(8)]
    times = [(moment, moment + 5_000_000) for moment in sent]
    usual = {"times": times, "edges": [10 * SECOND, 11 * SECOND, 12 * SECOND], "code": 0}
    return {**usual, "says": "25.0% of the requests were delayed", **changes}


class StandIn:
    """A perf_analyzer that does what it is told, one attempt after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "perf_analyzer"
        program.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        tool = PerfAnalyzer(program, dict(os.environ))
        self.profiled = ProfiledModel(tool, "render-3:8001", "digits", Path("inputs.json"))

    def will(self, *attempts: dict[str, Any]) -> None:
        (self.folder / "attempts.json").write_text(json.dumps(attempts))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path)


def test_what_perf_analyzer_writes_is_divided_into_windows(stand_in: StandIn) -> None:
    stand_in.will(attempt())
    found = measure(stand_in.profiled, ("--concurrency-range", "3"), 2, 7.2, 4)
    assert [list(window) for window in found.windows_ms] == [[5.0, 5.0]] * 4
    assert found.span_s == (10, 12)
    assert found.window_s == 0.5
    assert found.server_ms == {"queue": 0.25, "compute_infer": 1.5}
    assert found.delayed_share == 0.25
    assert found.load_cores > 0
    (call,) = stand_in.calls
    given = dict(zip(call, call[1:], strict=False))
    assert [given[name] for name in ("-m", "-u", "-i", "-b", "--concurrency-range")] == [
        *("digits", "render-3:8001", "grpc", "2", "3")
    ]
    # Three windows of its own, each 1.2 times as long as it is told.
    assert given["-p"] == "2000"
    assert given["--input-data"] == "inputs.json"


def test_its_windows_are_never_shorter_than_a_tenth_of_a_second(stand_in: StandIn) -> None:
    stand_in.will(attempt(says="nothing of interest"))
    found = measure(stand_in.profiled, (), 1, 0.1, 1)
    assert stand_in.calls[0][stand_in.calls[0].index("-p") + 1] == "100"
    assert found.delayed_share == 0


def test_an_attempt_without_a_request_is_repeated_twice_as_long(stand_in: StandIn) -> None:
    short = attempt(says="No valid requests recorded within time interval", code=1)
    stand_in.will(short, attempt(times=None), attempt())
    measure(stand_in.profiled, (), 1, 3.6, 1)
    lengths = [call[call.index("-p") + 1] for call in stand_in.calls]
    assert lengths == ["1000", "2000", "2000"]
    stand_in.will(short)
    with pytest.raises(ServerFault, match="measured nothing in 4 attempts of 57.6 s"):
        measure(stand_in.profiled, (), 1, 3.6, 1)
    assert len(stand_in.calls) == 3 + 4


def test_a_request_that_failed_is_not_repeated(stand_in: StandIn) -> None:
    stand_in.will(attempt(says="class_label is wrong", code=1))
    with pytest.raises(ServerFault, match="perf_analyzer failed:\nclass_label is wrong"):
        measure(stand_in.profiled, (), 1, 1, 1)
    assert len(stand_in.calls) == 1


def test_requests_at_a_rate_are_not_held_up_by_four_threads() -> None:
    assert rate_arguments(12.5, "poisson") == (
        *("--request-rate-range", "12.5", "--request-distribution", "poisson"),
        *("--max-threads", "32"),
    )


def test_the_length_of_a_window_follows_from_the_span() -> None:
    found = Measurement([np.zeros(1)] * 4, (10.0, 12.0), {}, 0.0, 0.0)
    assert found.window_s == 0.5


@pytest.mark.parametrize(
    ("kind", "value", "batch", "arguments"),
    [
        ("concurrency", 8, 1, ("--concurrency-range", "8")),
        ("batch", 16, 16, ("--concurrency-range", "1")),
        ("request_rate", 20, 1, ("--request-rate-range", "20")),
    ],
)
def test_a_point_has_the_figures_of_all_windows(
    stand_in: StandIn, kind: Any, value: float, batch: int, arguments: tuple[str, str]
) -> None:
    stand_in.will(attempt())
    point = measure_point(stand_in.profiled, kind, value, 2.0, 4)
    assert (point.kind, point.value, point.batch) == (kind, value, batch)
    assert (point.seconds, point.requests) == (2.0, 8)
    assert point.throughput.windows == (4.0,) * 4
    assert point.mean_ms.value == pytest.approx(5.0)
    assert (
        point.latency_ms["50"].why == "p50 needs 20 samples, there are 8; measure 2.8 times as long"
    )
    assert list(point.latency_ms) == ["50", "90", "95", "99"]
    assert point.delayed_share == 0.25
    assert point.server_ms == {"queue": 0.25, "compute_infer": 1.5}
    assert (point.server_cores, point.server_mib) == (None, None)
    (call,) = stand_in.calls
    assert call[call.index(arguments[0]) + 1] == arguments[1]
    assert call[call.index("-b") + 1] == str(batch)


def test_an_export_never_fills_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, 2**30))
    tool = PerfAnalyzer(Path("none"), {})
    large = ProfiledModel(tool, "render-3:8001", "large", Path("none"), 3 * 2**20)
    assert seconds_that_fit(large, 8, 4) == pytest.approx(2**28 / (4 * 12 * 2**20))
    assert seconds_that_fit(large, 0.5, 4) == 0.5
    with pytest.raises(ServerFault, match="1.0 GiB left; set TMPDIR"):
        seconds_that_fit(large, 8, 100)
    point = measure_point(large, "concurrency", 8, 3, 6, most_rate=100)
    assert point.failure.startswith(
        "not measured: perf_analyzer writes all inputs and outputs as text"
    )
    assert "here about 1.2 GiB/s" in point.failure
    batches = measure_point(large, "batch", 32, 3, 6, most_rate=100 / 32)
    assert "here about 1.2 GiB/s" in batches.failure
    small = ProfiledModel(tool, "render-3:8001", "digits", Path("none"), 1024)
    assert seconds_that_fit(small, 8, 1000) == 8
