import subprocess
from pathlib import Path

import pytest

from latentry.contract.errors import NotFound
from latentry.profiling.perf_analyzer import fetch
from latentry.profiling.perf_analyzer.fetch import fetch_perf_analyzer
from latentry.profiling.perf_analyzer.program import fetched_folder


def test_a_fetch_that_fails_leaves_nothing(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], _: Path) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="no network\n")

    monkeypatch.setattr(fetch, "_run", refuse)
    with pytest.raises(NotFound, match=r"cannot be fetched: .* ended with exit code 1: no network"):
        fetch_perf_analyzer()
    assert not fetched_folder().exists()
    assert not list(fetched_folder().parent.iterdir())
