import json
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from profiles.slo import DEFAULT, OBJECTIVE, holding

from latentry.contract.errors import ServeError
from latentry.profiling.load.target import Target
from latentry.profiling.slo.answer import answer
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.search import Search, coordinates
from latentry.profiling.slo.state import SearchState, Serving


class Simulated(Search):
    """A search whose candidates hold what a formula says: best 3 instances, batches to 8."""

    measured: list[dict[str, int]]

    def measure(self, serving: dict[str, int], floor: float) -> Holding:
        self.measured.append(serving)
        if serving["instances"] == 4:
            raise ServeError("too much memory")
        rate = (
            1000.0 - 100 * abs(serving["instances"] - 3) - 10 * abs(serving["max_batch_size"] - 8)
        )
        rate -= serving["max_queue_delay_microseconds"] / 100
        return holding(rate if rate > floor else 0)


def serve_nothing(_: Serving) -> AbstractContextManager[Target]:
    raise AssertionError("what is simulated is not served")


def search(folder: Path, budget_s: float = 1e6, kind: type[Simulated] = Simulated) -> Simulated:
    state = SearchState.open(folder, {"model": "digits"})
    made = kind(serve_nothing, OBJECTIVE, DEFAULT, 32, budget_s, state)
    made.measured = []
    return made


def test_no_coordinate_goes_beyond_what_is_proved() -> None:
    for most in (1, 3, 16, 32, 100):
        assert max(coordinates(most, 2)["max_batch_size"]) == most
    assert coordinates(32, 2)["threads"] == (1, 2)
    assert min(coordinates(32, 1)["instances"]) == 1


def test_the_search_finds_the_best_and_measures_nothing_twice(tmp_path: Path) -> None:
    first = search(tmp_path)
    best, finished = first.run()
    assert finished
    assert best.serving == {**DEFAULT, "instances": 3, "max_batch_size": 8}
    assert len(first.measured) == len({json.dumps(item) for item in first.measured})
    assert first.measured[0] == DEFAULT
    assert any(item.failure == "too much memory" for item in first.state.candidates)


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    whole.run()

    class Interrupted(Simulated):
        def measure(self, serving: dict[str, int], floor: float) -> Holding:
            if len(self.measured) == 5:
                raise KeyboardInterrupt
            return super().measure(serving, floor)

    broken = search(tmp_path / "broken", kind=Interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = search(tmp_path / "broken")
    assert len(again.state.candidates) == 4  # and one that failed
    best, finished = again.run()
    assert finished
    assert [item["instances"] for item in again.measured if item in broken.measured] == [4]
    assert {json.dumps(item) for item in broken.measured + again.measured} == {
        json.dumps(item) for item in whole.measured
    }
    assert best.serving == {**DEFAULT, "instances": 3, "max_batch_size": 8}


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    first = search(tmp_path)
    first.run()
    again = search(tmp_path)
    best, finished = again.run()
    assert finished
    assert best.serving == {**DEFAULT, "instances": 3, "max_batch_size": 8}
    assert again.measured
    assert {item["instances"] for item in again.measured} == {4}


def test_a_spent_budget_ends_the_search_after_the_default(tmp_path: Path) -> None:
    short = search(tmp_path, budget_s=0)
    best, finished = short.run()
    assert not finished
    assert short.measured == [DEFAULT]
    assert best.serving == DEFAULT
    found = answer(short, holding(5), DEFAULT, OBJECTIVE)
    assert found.recommended is None
    assert not found.finished
