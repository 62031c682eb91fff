import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from profiles.simulated_time import Clock, Server, simulate
from profiles.slo import DEFAULT, OBJECTIVE, holding

from latentry.contract.errors import ServeError
from latentry.profiling.load.target import Target
from latentry.profiling.slo.answer import answer
from latentry.profiling.slo.held_rate import Holding
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.search import Search, coordinates
from latentry.profiling.slo.state import Candidate, SearchState, Serving


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
    assert coordinates(32, 2) == {
        "instances": (1, 2, 3, 4),
        "threads": (1, 2),
        "max_batch_size": (4, 8, 16, 32),
        "max_queue_delay_microseconds": (0, 200, 1000, 4000),
    }
    assert coordinates(32, 16)["instances"] == (1, 2, 3, 4, 5, 6)
    assert coordinates(32, 16)["threads"] == (1, 8, 16)
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


def test_a_default_that_cannot_be_measured_ends_the_search(tmp_path: Path) -> None:
    class Refused(Simulated):
        def measure(self, serving: dict[str, int], floor: float) -> Holding:
            raise ServeError("no port")

    refused = search(tmp_path, kind=Refused)
    with pytest.raises(ServeError, match="no port"):
        refused.run()
    assert refused.state.candidates == []


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


BEST = {**DEFAULT, "instances": 3}


class Servers:
    """Serve configurations in simulated time: every answer takes so many ms, by instances."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, ms: dict[int, float], workers: int = 100
    ) -> None:
        self.clock: Clock = simulate(monkeypatch)
        self.ms, self.workers = ms, workers
        self.running: list[Serving] = []
        self.started: list[Serving] = []

    @contextmanager
    def serve(self, serving: Serving) -> Iterator[Target]:
        self.running.append(serving)
        self.started.append(serving)
        yield Server(self.clock, self.ms[serving["instances"]] / 1e3, self.workers)
        self.running.remove(serving)

    def search(self, folder: Path, budget_s: float = 1e6) -> Search:
        return Search(
            serve=self.serve,
            objective=Objective(percent=90, limit_ms=50),
            default=DEFAULT,
            most_batch=32,
            budget_s=budget_s,
            state=SearchState.open(folder, {"model": "digits"}),
            clock=self.clock.perf_counter,
            cores=2,
        )


def knowing(search: Search, default: float, best: float) -> Candidate:
    """Give ``search`` what its two configurations hold; return the best."""
    known = [Candidate(serving=DEFAULT, holding=holding(default))]
    known.append(Candidate(serving=BEST, holding=holding(best)))
    search.state.candidates = known
    return known[1]


def test_the_best_and_the_default_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(monkeypatch, {2: 60, 3: 30})
    search = servers.search(tmp_path)
    steps: list[str] = []
    search.on_step = steps.append
    found = search.compare(knowing(search, default=90, best=160))
    assert found is not None
    assert found.rate == pytest.approx(120)  # the geometric mean of 90 and 160
    assert found.default_ms == pytest.approx([60] * 7)
    assert found.best_ms == pytest.approx([30] * 7)
    assert found.better
    assert servers.started == [DEFAULT, BEST]
    assert servers.running == []
    assert steps == ["the best against the default, 7 windows each"]
    saved = SearchState.open(tmp_path, {"model": "digits"})
    assert saved.final == found
    assert saved.spent_s == pytest.approx(servers.clock.perf_counter() - 100)


def test_where_both_hold_the_target_the_best_is_not_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Servers(monkeypatch, {2: 49, 3: 30}).search(tmp_path)
    found = search.compare(knowing(search, default=90, best=160))
    assert found is not None
    assert found.p_value < 0.001
    assert not found.better


def test_a_default_that_holds_nothing_is_compared_at_the_rate_of_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Servers(monkeypatch, {2: 60, 3: 30}).search(tmp_path)
    found = search.compare(knowing(search, default=0, best=160))
    assert found is not None
    assert found.rate == 160


def test_a_comparison_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch, {2: 60, 3: 30})
    search = servers.search(tmp_path)
    first = search.compare(knowing(search, default=90, best=160))
    assert search.compare(knowing(search, default=90, best=160)) is first
    assert len(servers.started) == 2
    other = search.compare(knowing(search, default=90, best=170))
    assert other is not None
    assert other.rate == pytest.approx((90 * 170) ** 0.5)
    assert len(servers.started) == 4


def test_nothing_is_compared_where_nothing_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Servers(monkeypatch, {})
    search = servers.search(tmp_path)
    assert search.compare(knowing(search, default=160, best=160)) is None
    assert search.compare(search.state.candidates[0]) is None
    search.state.candidates.clear()
    assert search.compare(Candidate(serving=BEST, holding=holding(9))) is None
    assert servers.started == []


def test_a_search_is_answered_by_what_its_servers_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three instances answer in time, all others do not; nothing else makes a difference."""
    servers = Servers(monkeypatch, {n: 30 if n == 3 else 60 for n in range(1, 7)}, 6)
    search = servers.search(tmp_path)
    found = answer(search, holding(5), DEFAULT, search.objective)
    assert found.recommended == BEST
    assert found.finished
    assert found.final is not None
    assert found.final.better
    assert found.candidates[0].serving == DEFAULT
    assert found.candidates[0].rate == 0
    assert found.candidates == tuple(search.state.candidates)
    assert found.spent_s == pytest.approx(servers.clock.perf_counter() - 100)
    assert sum(item.seconds for item in found.candidates) < found.spent_s
    assert (found.running, found.running_serving) == (holding(5), DEFAULT)


def test_a_search_keeps_to_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch, {n: 30 + n for n in range(1, 7)}, 6)
    search = servers.search(tmp_path, 120)
    found = answer(search, holding(5), DEFAULT, search.objective)
    assert not found.finished
    assert len(found.candidates) > 1
    assert 60 < servers.clock.perf_counter() - 100 < 120


def test_without_a_search_only_the_running_server_is_answered_for() -> None:
    found = answer(None, holding(5), DEFAULT, OBJECTIVE)
    assert found.running == holding(5)
    assert found.running_serving == DEFAULT
    assert found.objective == OBJECTIVE
    assert (found.candidates, found.recommended, found.finished) == ((), None, False)
