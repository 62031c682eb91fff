from types import SimpleNamespace

import pytest
from profiles.simulated_time import Clock, Server, simulate
from profiles.slo import OBJECTIVE, probe

from latentry.contract.errors import BadRequest, ServerFault
from latentry.profiling.slo import held_rate
from latentry.profiling.slo.held_rate import find_held_rate
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import Probe, probe_rate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)


def test_the_interval_of_a_rate_comes_from_the_intervals_of_its_probes() -> None:
    probes = [probe(100, 20, spread=5), probe(200, 48, spread=5), probe(300, 90, spread=5)]
    found = held_rate._holding(probes, OBJECTIVE, 400)
    assert (found.low, found.rate, found.high) == (100, 200, 300)
    nothing = held_rate._holding([probe(10, 90)], OBJECTIVE, 400)
    assert (nothing.low, nothing.rate, nothing.high) == (0, 0, 10)


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


@pytest.mark.parametrize(("saturation", "least"), [(100.0, 1250 / 60), (10_000.0, 200.0)])
def test_nothing_is_asked_where_too_few_requests_would_answer(
    monkeypatch: pytest.MonkeyPatch, saturation: float, least: float
) -> None:
    asked: list[float] = []

    def fail(_: object, __: object, rate: float, *, seed: int) -> Probe:
        asked.append(rate)
        return probe(rate, 90)

    monkeypatch.setattr(held_rate, "_saturation", lambda _: saturation)
    monkeypatch.setattr(held_rate, "probe_rate", fail)
    found = find_held_rate(Server(Clock(), 1), OBJECTIVE)
    assert (found.rate, found.high) == (0, min(asked))
    assert min(asked) == pytest.approx(least)  # or 2 % of what it can do


def test_a_rate_that_is_better_than_the_floor_is_found_above_it(clock: Clock) -> None:
    objective = Objective(percent=90, limit_ms=40)
    found = find_held_rate(Server(clock, 1 / 300), objective, floor=100)
    assert 250 < found.rate < 280
    assert found.probes[0].rate == pytest.approx(104)
    assert min(item.rate for item in found.probes) == found.probes[0].rate


def test_a_target_that_fails_every_request_is_no_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = SimpleNamespace(completed=0, errors={"no such model": 9}, throughput=0.0)
    monkeypatch.setattr(held_rate, "run_closed", lambda *_, **__: refused)
    with pytest.raises(ServerFault, match="every request failed: no such model"):
        find_held_rate(Server(Clock(), 1), OBJECTIVE)
    slow = SimpleNamespace(completed=3, errors={}, throughput=0.5)
    monkeypatch.setattr(held_rate, "run_closed", lambda *_, **__: slow)
    assert held_rate._saturation(Server(Clock(), 1)) == 0.5
