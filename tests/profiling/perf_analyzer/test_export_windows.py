import json
from pathlib import Path

import numpy as np
import pytest

from latentry.profiling.perf_analyzer.export_windows import windows_from_export


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
    found = windows_from_export(export(tmp_path, times, [0, second, 2 * second, 4 * second]), 4)
    assert found is not None
    windows, span_s = found
    assert span_s == (0, 4)
    assert [len(window) for window in windows] == [10, 10, 10, 10]
    assert np.concatenate(windows) == pytest.approx(5.0)


def test_an_export_that_breaks_off_is_noticed(tmp_path: Path) -> None:
    path = export(tmp_path, [(0, 5)] * 20, [0, 10])
    path.write_bytes(path.read_bytes()[:-40])
    assert windows_from_export(path, 2) is None
    path.write_bytes(b"")
    assert windows_from_export(path, 2) is None
    assert windows_from_export(tmp_path / "nothing.json", 2) is None
    assert windows_from_export(export(tmp_path, [], [0, 10]), 2) is None
