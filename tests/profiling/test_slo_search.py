import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from simulated_time import Clock, Server, simulate

from latentry.contract.errors import BadRequest, ServeError
from latentry.profiling.estimates import Estimate
from latentry.profiling.slo import search as slo_search
from latentry.profiling.slo.search import (
    Candidate,
    Holding,
    Objective,
    Probe,
    Search,
    SearchState,
    Serving,
    answer,
    coordinates,
    find_held_rate,
    probe_rate,
)

DEFAULT = {
    "max_batch_size": 32,
    "max_queue_delay_microseconds": 0,
    "max_queue_size": 0,
    "instances": 2,
    "threads": 0,
}
OBJECTIVE = Objective(percent=99, limit_ms=50)


def probe(rate: float, value: float, *, spread: float = 0.0, errors: int = 0) -> Probe:
    return Probe(
        rate=rate,
        requests=1000,
        errors={"no": errors} if errors else {},
        latency_ms=Estimate(value=value, low=value - spread, high=value + spread),
        load_cores=0.1,
    )


def holding(rate: float) -> Holding:
    return Holding(rate=rate, low=rate, high=None, saturation=2 * rate, probes=())


@pytest.mark.parametrize(
    ("text", "percent", "limit_ms"),
    [("p99=50ms", 99, 50), ("p95=0.2s", 95, 200), ("p99.9=900us", 99.9, 0.9)],
)
def test_an_objective_is_read(text: str, percent: float, limit_ms: float) -> None:
    objective = Objective.parse(text)
    assert objective.percent == percent
    assert objective.limit_ms == pytest.approx(limit_ms)


@pytest.mark.parametrize("text", ["p99", "99=50ms", "p100=5ms", "p0=5ms", "p99=50", "p99=0ms", ""])
def test_a_bad_objective_says_how_to_write_one(text: str) -> None:
    with pytest.raises(BadRequest, match="write p99=50ms"):
        Objective.parse(text)


def test_a_failed_request_holds_nothing() -> None:
    assert probe(100, 40).holds(50)
    assert not probe(100, 40, errors=1).holds(50)
    assert probe(100, 40, errors=1).surely_fails(50)


def test_only_a_whole_interval_is_sure() -> None:
    unsure = probe(100, 49, spread=5)
    assert unsure.holds(50)
    assert not unsure.surely_holds(50)
    assert not unsure.surely_fails(50)
    assert not probe(100, 51, spread=5).surely_fails(50)


def test_the_interval_of_a_rate_comes_from_the_intervals_of_its_probes() -> None:
    probes = [probe(100, 20, spread=5), probe(200, 48, spread=5), probe(300, 90, spread=5)]
    found = slo_search._holding(probes, OBJECTIVE, 400)
    assert (found.low, found.rate, found.high) == (100, 200, 300)
    nothing = slo_search._holding([probe(10, 90)], OBJECTIVE, 400)
    assert (nothing.low, nothing.rate, nothing.high) == (0, 0, 10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)


def test_bisection_finds_what_is_held(clock: Clock) -> None:
    """One server of 300 a second: what it holds is what the theory of queues says."""
    objective = Objective(percent=90, limit_ms=40)
    found = find_held_rate(Server(clock, 1 / 300), objective)
    assert found.saturation == pytest.approx(300, abs=1)
    # Its 90th percentile is 26 ms at 255 requests a second, 40 ms at 270 and 57 ms at 280.
    assert 250 < found.rate < 280
    assert found.high is not None
    assert found.low < found.rate < found.high < 300
    held = [item.rate for item in found.probes if item.holds(40)]
    assert found.rate == max(held)
    below = find_held_rate(Server(clock, 1 / 300), objective, floor=600)
    assert below.rate == 0
    assert [item.rate for item in below.probes] == [pytest.approx(624)]


def test_a_percentile_that_a_probe_cannot_see_is_refused(clock: Clock) -> None:
    target = Server(clock, 1.6, workers=64)  # 40 a second
    slow = Objective(percent=99.9, limit_ms=5000)
    with pytest.raises(BadRequest, match=r"p99\.9 needs 10,000 requests; at .*ask for p99 or less"):
        find_held_rate(target, slow)
    with pytest.raises(BadRequest, match="p99 needs 1,000 requests; at 2/s that takes 500 s"):
        probe_rate(target, OBJECTIVE, 2.0)
    with pytest.raises(BadRequest, match="too slow for a target"):
        probe_rate(target, OBJECTIVE, 0.1)


def test_nothing_is_asked_where_too_few_requests_would_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def fail(_: object, __: object, rate: float, *, seed: int) -> Probe:
        asked.append(rate)
        return probe(rate, 90)

    monkeypatch.setattr(slo_search, "_saturation", lambda _: 100.0)
    monkeypatch.setattr(slo_search, "probe_rate", fail)
    found = find_held_rate(Server(Clock(), 1), OBJECTIVE)
    assert (found.rate, found.high) == (0, min(asked))
    assert min(asked) == pytest.approx(1250 / 60)


def test_no_coordinate_goes_beyond_what_is_proved() -> None:
    for most in (1, 3, 16, 32, 100):
        assert max(coordinates(most, 2)["max_batch_size"]) == most
    assert coordinates(32, 2)["threads"] == (1, 2)
    assert min(coordinates(32, 1)["instances"]) == 1


class Simulated(Search):
    """A search whose candidates hold what a formula says: best 3 instances, batches to 8."""

    measured: list[dict[str, int]]

    def measure(self, serving: dict[str, int], floor: float) -> Holding:
        self.measured.append(serving)
        if serving["instances"] == 4:
            raise ServeError("too much memory")
        rate = 1000 - 100 * abs(serving["instances"] - 3) - 10 * abs(serving["max_batch_size"] - 8)
        rate -= serving["max_queue_delay_microseconds"] / 100
        return holding(rate if rate > floor else 0)


def serve_nothing(_: Serving) -> AbstractContextManager[str]:
    raise AssertionError("what is simulated is not served")


def search(folder: Path, budget_s: float = 1e6, kind: type[Simulated] = Simulated) -> Simulated:
    state = SearchState.open(folder, {"model": "digits"})
    made = kind(serve_nothing, "digits", OBJECTIVE, DEFAULT, 32, budget_s, state)
    made.measured = []
    return made


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


def test_a_folder_holds_one_search(tmp_path: Path) -> None:
    search(tmp_path, budget_s=0).run()
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


def test_ranks_share_a_tie() -> None:
    assert slo_search._ranks([1, 5], [5, 9]) == ([0.5, 2.0], [2.0, 3.5])
