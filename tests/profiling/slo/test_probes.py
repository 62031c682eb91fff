from collections import Counter
from typing import Any

import numpy as np
import pytest
from profiles.simulated_time import Clock, Server, simulate
from profiles.slo import OBJECTIVE, probe

from latentry.contract.errors import BadRequest
from latentry.profiling.load.results import LoadResult
from latentry.profiling.slo import probes
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.probes import least_rate, probe_rate


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


def test_the_limit_itself_is_held() -> None:
    assert probe(100, 50).holds(50)
    assert probe(100, 45, spread=5).surely_holds(50)
    assert not probe(100, 55, spread=5).surely_fails(50)
    assert probe(100, 56, spread=5).surely_fails(50)
    assert not probe(100, 45, spread=5, errors=1).surely_holds(50)


class Runs:
    """Stand in for the load generator: each run gives 1,000 latencies of so many ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ms: float, errors: int = 0) -> None:
        self.ms, self.errors = list(ms), errors
        self.asked: list[dict[str, Any]] = []
        monkeypatch.setattr(probes, "run_open", self.run)

    def run(self, _: object, **asked: Any) -> LoadResult:
        latencies = np.full(1000, self.ms[len(self.asked)] / 1e3)
        self.asked.append(asked)
        return LoadResult(
            rate=asked["rate"],
            seconds=asked["duration_s"],
            sent=1000 + self.errors,
            completed=1000,
            errors=Counter({"no": self.errors} if self.errors else {}),
            throughput=asked["rate"],
            latencies_s=latencies,
            late_s=0.0,
            cpu_cores=0.1 * len(self.asked),
        )


@pytest.fixture
def target() -> Server:
    return Server(Clock(), 1)


def test_a_rate_that_holds_is_run_once(monkeypatch: pytest.MonkeyPatch, target: Server) -> None:
    runs = Runs(monkeypatch, 40, 0)
    found = probe_rate(target, OBJECTIVE, 100, seed=7)
    # A quarter more than the 1,000 requests that p99 needs.
    assert runs.asked == [{"rate": 100, "duration_s": 12.5, "warm_up_s": 0.5, "seed": 14}]
    assert (found.rate, found.requests, found.errors, found.load_cores) == (100, 1000, {}, 0.1)
    assert found.latency_ms.value == pytest.approx(40)
    assert len(found.latency_ms.windows) == 4


def test_a_rate_that_fails_is_run_again_and_both_count(
    monkeypatch: pytest.MonkeyPatch, target: Server
) -> None:
    runs = Runs(monkeypatch, 60, 40)
    found = probe_rate(target, Objective(percent=50, limit_ms=55), 100, seed=7)
    assert [item["seed"] for item in runs.asked] == [14, 15]
    assert found.requests == 2000
    assert found.latency_ms.value == pytest.approx(50)  # half of the requests took 60 ms
    assert found.load_cores == pytest.approx(0.2)
    assert found.holds(55)
    failing = Runs(monkeypatch, 60, 60, errors=3)
    assert probe_rate(target, OBJECTIVE, 100).errors == {"no": 6}
    assert len(failing.asked) == 2


def test_a_hopeless_rate_is_run_once(monkeypatch: pytest.MonkeyPatch, target: Server) -> None:
    runs = Runs(monkeypatch, 151, 40)
    assert not probe_rate(target, OBJECTIVE, 100).holds(50)
    assert len(runs.asked) == 1
    near = Runs(monkeypatch, 149, 40)
    probe_rate(target, OBJECTIVE, 100)
    assert len(near.asked) == 2


def test_a_probe_is_as_long_as_its_percentile_needs(
    monkeypatch: pytest.MonkeyPatch, target: Server
) -> None:
    runs = Runs(monkeypatch, 40, 40, 40)
    probe_rate(target, OBJECTIVE, 1e6)
    probe_rate(target, OBJECTIVE, least_rate(99))
    assert [item["duration_s"] for item in runs.asked] == [1.5, pytest.approx(60)]
    assert least_rate(99) == pytest.approx(1250 / 60)
    with pytest.raises(BadRequest, match=r"p99 needs 1,000 requests; at 10/s that takes 96 s, and"):
        probe_rate(target, OBJECTIVE, 0.5 * least_rate(99))
    with pytest.raises(BadRequest, match="none is answered, and a rate is tried for 60 s at most"):
        probe_rate(target, OBJECTIVE, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)


def test_a_probe_of_a_simulated_server_sees_its_latency(clock: Clock) -> None:
    found = probe_rate(Server(clock, 0.02, workers=99), Objective(percent=50, limit_ms=50), 100)
    assert found.latency_ms.value == pytest.approx(20)
    assert found.requests == pytest.approx(150, abs=50)
