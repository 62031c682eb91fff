"""The state of a search, as nobody writes it."""

from pathlib import Path

import pytest

from latentry.contract.errors import BadRequest
from latentry.profiling.slo.state import SearchState


@pytest.mark.parametrize("spent_s", ["1" + "0" * 400, '"x"', "[]", "null"])
def test_a_time_that_is_none_is_refused_in_one_line(tmp_path: Path, spent_s: str) -> None:
    state = SearchState.open(tmp_path, {})
    state.path.write_text(
        '{"key": {}, "running": null, "candidates": [], "final": null, '
        f'"spent_s": {spent_s}' + "}"
    )
    with pytest.raises(BadRequest, match="is not understood; remove it to start anew"):
        SearchState.open(tmp_path, {})
