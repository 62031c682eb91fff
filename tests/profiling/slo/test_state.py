import os
from pathlib import Path

import pytest
from profiles.slo import DEFAULT, holding

from latentry.contract.errors import BadRequest
from latentry.profiling.slo.state import Candidate, SearchState


def test_a_folder_holds_one_search(tmp_path: Path) -> None:
    SearchState.open(tmp_path, {"model": "digits"}).save()
    with pytest.raises(BadRequest, match="holds the search for something else"):
        SearchState.open(tmp_path, {"model": "textures"})
    for text in ("[" * 100_000, "[]", '{"running": 7}'):
        (tmp_path / "slo-search.json").write_text(text)
        with pytest.raises(BadRequest, match="remove it to start anew"):
            SearchState.open(tmp_path, {"model": "digits"})
    (tmp_path / "slo-search.json").unlink()
    os.mkfifo(tmp_path / "slo-search.json")
    with pytest.raises(BadRequest, match="remove it to start anew"):
        SearchState.open(tmp_path, {"model": "digits"})
    (tmp_path / "slo-search.json").unlink()
    (tmp_path / "slo-search.json").write_text("{")
    with pytest.raises(BadRequest, match="remove it to start anew"):
        SearchState.open(tmp_path, {"model": "digits"})


def test_the_state_survives_its_file(tmp_path: Path) -> None:
    state = SearchState.open(tmp_path, {"model": "digits"})
    state.running = holding(10)
    state.candidates.append(Candidate(serving=DEFAULT, holding=holding(20), seconds=3))
    state.spent_s = 4.5
    state.save()
    again = SearchState.open(tmp_path, {"model": "digits"})
    assert again == state
    assert [path.name for path in tmp_path.iterdir()] == ["slo-search.json"]
