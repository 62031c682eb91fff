from pathlib import Path

import pytest

from latentry.contract.errors import NotFound, ServerFault
from latentry.profiling.perf_analyzer.program import (
    PerfAnalyzer,
    fetched_folder,
    find_perf_analyzer,
    require_perf_analyzer,
)


def program(path: Path, text: str, size: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\nexit\n" + "#" * size)
    path.chmod(0o755)
    return path


def test_where_there_is_none_the_way_to_it_is_said(nothing: Path) -> None:
    assert find_perf_analyzer() is None
    with pytest.raises(NotFound, match="there is none; run `latentry doctor --install"):
        require_perf_analyzer()


def test_the_placeholder_is_refused_by_name(nothing: Path) -> None:
    program(nothing / "perf_analyzer", "exit 0")
    assert find_perf_analyzer() is None
    with pytest.raises(NotFound, match="is pip's placeholder, which does nothing"):
        require_perf_analyzer()


def test_the_vendors_comes_before_the_fetched_one(nothing: Path) -> None:
    fetched = program(fetched_folder() / "perf_analyzer", "exit 0")
    assert fetched.is_relative_to(nothing / "cache" / "latentry")
    found = find_perf_analyzer()
    assert found is not None
    assert found.program == fetched
    assert found.environment["LD_LIBRARY_PATH"].startswith(str(fetched.parent))
    vendors = program(nothing / "perf_analyzer", "exit 0", size=200_000)
    found = find_perf_analyzer()
    assert found is not None
    assert found.program == vendors


def test_what_it_says_when_it_fails_is_the_error(tmp_path: Path) -> None:
    tool = PerfAnalyzer(program(tmp_path / "p", "echo one; echo two >&2; exit 99"), {})
    with pytest.raises(ServerFault, match="perf_analyzer failed:\none\ntwo"):
        tool.run("-m", "digits")
    slow = PerfAnalyzer(program(tmp_path / "q", "exec /bin/sleep 60"), {})
    with pytest.raises(ServerFault, match="did not end within 0.1 s"):
        slow.run(timeout_s=0.1)
