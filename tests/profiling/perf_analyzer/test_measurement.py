import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from latentry.contract.errors import ServerFault
from latentry.profiling.perf_analyzer.measurement import ProfiledModel, seconds_that_fit
from latentry.profiling.perf_analyzer.program import PerfAnalyzer
from latentry.profiling.sweep import measure_point


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
    assert point.failure.startswith("not measured: perf_analyzer writes every output as text")
    small = ProfiledModel(tool, "render-3:8001", "digits", Path("none"), 1024)
    assert seconds_that_fit(small, 8, 1000) == 8
