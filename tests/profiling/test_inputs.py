from pathlib import Path

import pytest
from running_server import RunningServer

from latentry.profiling.inputs import valid_inputs


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
