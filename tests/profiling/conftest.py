"""A served model to be measured; the server made of arithmetic for what needs no images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import start_server
from running_server import RunningServer, run_server

from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.perf_analyzer.program import find_perf_analyzer

__all__ = ["profiled", "start_server"]


@pytest.fixture
def profiled(triton: RunningServer, repository: Path) -> ProfiledModel:
    """Return the model digits and a perf_analyzer."""
    tool = find_perf_analyzer()
    if tool is None:
        pytest.skip("no perf_analyzer on this machine")
    input_file = repository / "digits" / "1" / "perf_input.json"
    return ProfiledModel(tool, triton.url, "digits", input_file)


@pytest.fixture(scope="session")
def varied_server(varied: Path) -> Iterator[RunningServer]:
    """Return a server of generators that take and give more than z and a picture."""
    with run_server(varied, "--instances", "1") as running:
        yield running
