import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles.simulated_time import Clock, Done, Server, simulate

from latentry.contract.errors import BadRequest, ServerGone
from latentry.profiling.load import schedules
from latentry.profiling.load.schedules import arrival_times, run_closed, run_open


class Worker:
    """Answers one request after the other, each after ``service_s``."""

    def __init__(self, service_s: float, workers: int = 1) -> None:
        self.service_s = service_s
        self.pool = ThreadPoolExecutor(workers)
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    def send(self, done: Done) -> None:
        with self.lock:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        self.pool.submit(self._answer, done)

    def _answer(self, done: Done) -> None:
        time.sleep(self.service_s)
        with self.lock:
            self.under_way -= 1
        done(None)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(0.005, workers=4)
    yield worker
    worker.pool.shutdown(cancel_futures=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)


@settings(max_examples=25)
@given(
    rate=st.floats(5, 2000),
    seconds=st.floats(0.5, 5),
    seed=st.integers(0, 2**32),
)
def test_poisson_arrivals_are_a_poisson_process(rate: float, seconds: float, seed: int) -> None:
    due = arrival_times(rate, seconds, "poisson", seed)
    expected = rate * seconds
    assert abs(len(due) - expected) < 6 * np.sqrt(expected) + 1
    assert (np.diff(due) >= 0).all()
    assert 0 <= due.min(initial=0) <= due.max(initial=0) < seconds
    assert (due == arrival_times(rate, seconds, "poisson", seed)).all()


def test_gaps_of_poisson_arrivals_vary_as_much_as_they_last() -> None:
    gaps = np.diff(arrival_times(1000, 20, "poisson", 1))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)


def test_constant_arrivals_are_equally_far_apart() -> None:
    assert np.diff(arrival_times(50, 2, "constant", 0)) == pytest.approx(0.02)


def test_a_rate_is_kept_and_the_warm_up_is_not_counted(clock: Clock) -> None:
    server = Server(clock, 0.005, workers=4)
    result = run_open(server, rate=200, duration_s=1, warm_up_s=0.5, arrivals="constant")
    assert result.sent == result.completed == len(result.latencies_s) == pytest.approx(200, abs=1)
    assert result.throughput == pytest.approx(200, abs=1)
    assert not result.errors
    assert result.percentiles_ms()[50] == pytest.approx(5)
    assert result.late_s == pytest.approx(0)


def test_a_second_of_the_same_comes_before(clock: Clock) -> None:
    server = Server(clock, 0.001)
    start = clock.perf_counter()
    opened = run_open(server, rate=100, duration_s=2, arrivals="constant")
    assert clock.perf_counter() - start == pytest.approx(3, abs=0.02)
    assert opened.sent == pytest.approx(200, abs=1)
    start = clock.perf_counter()
    closed = run_closed(server, outstanding=1, duration_s=2)
    assert clock.perf_counter() - start == pytest.approx(3, abs=0.02)
    assert closed.completed == pytest.approx(2000, abs=2)


def test_latency_counts_from_when_a_request_was_due(clock: Clock) -> None:
    """One worker of 20 ms at 100 a second falls behind; a closed loop would not notice."""
    result = run_open(Server(clock, 0.02), rate=100, duration_s=1, warm_up_s=0, arrivals="constant")
    # The last of 100 requests waits for 99 others, of which half the time has passed.
    assert result.latencies_s.max() == pytest.approx(100 * 0.02 - 99 * 0.01)
    assert result.throughput == pytest.approx(50, abs=1)
    assert result.completed == result.sent == 100


def test_requests_go_out_at_their_time_whatever_becomes_of_the_earlier_ones(worker: Worker) -> None:
    """In real time, and with threads: figures depend on the machine, but the numbers do not."""
    result = run_open(worker, rate=100, duration_s=0.5, warm_up_s=0.1, arrivals="constant")
    assert result.sent == result.completed == pytest.approx(50, abs=1)
    assert not result.errors
    assert result.latencies_s.min() >= 0.005
    assert 0 < result.throughput <= 120


def test_a_hopeless_target_is_not_flooded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_MOST_OUTSTANDING", 20)
    silent = Server(clock, 0.5, workers=20)
    result = run_open(silent, rate=200, duration_s=0.4, warm_up_s=0)
    assert result.errors["not sent: 20 requests were outstanding"] == result.sent - 20
    assert result.completed == silent.most_under_way == 20


def test_what_is_never_answered_is_an_error(clock: Clock) -> None:
    result = run_open(Server(clock, 3600), rate=50, duration_s=1, warm_up_s=0, arrivals="constant")
    assert result.errors == {"no answer within 15 s of the end": 50}
    assert (result.sent, result.completed) == (50, 0)


def test_errors_are_counted_by_their_text(clock: Clock) -> None:
    class Refusing:
        def send(self, done: Done) -> None:
            done(RuntimeError("no"))

    result = run_open(Refusing(), rate=100, duration_s=0.3, warm_up_s=0.1)
    assert result.errors == {"no": result.sent}
    assert result.completed == 0
    assert np.isnan(result.percentiles_ms()[99])


def test_a_lost_connection_is_not_asked_as_fast_as_it_fails(clock: Clock) -> None:
    class Lost:
        def send(self, done: Done) -> None:
            done(ServerGone("gone"))

    result = run_closed(Lost(), outstanding=64, duration_s=0.3, warm_up_s=0)
    assert result.throughput == 0
    # All at first, and then one after each pause of 10 ms.
    assert result.errors["gone"] == pytest.approx(64 + 30, abs=1)


def test_so_many_are_kept_outstanding(clock: Clock) -> None:
    server = Server(clock, 0.005, workers=4)
    result = run_closed(server, outstanding=4, duration_s=0.8, warm_up_s=0.2)
    assert server.most_under_way == 4
    assert result.throughput == pytest.approx(800, abs=5)
    assert result.percentiles_ms()[50] == pytest.approx(5)
    assert result.rate is None
    assert not result.errors


def test_the_thread_that_brings_an_answer_sends_the_next_request(worker: Worker) -> None:
    """In real time: as many as are to be outstanding are, and no more."""
    result = run_closed(worker, outstanding=4, duration_s=0.4, warm_up_s=0.1)
    assert worker.most_under_way == 4
    assert 0 < result.throughput <= 4 / 0.005 + 10
    assert not result.errors


def test_a_target_that_answers_at_once_does_not_recurse(clock: Clock) -> None:
    class Immediate:
        def send(self, done: Done) -> None:
            clock.sleep(1e-4)
            done(None)

    result = run_closed(Immediate(), outstanding=2, duration_s=0.5, warm_up_s=0)
    assert result.completed == pytest.approx(5000, abs=1)  # five times as deep as Python goes


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_above_zero(rate: float, worker: Worker) -> None:
    with pytest.raises(BadRequest, match="must be above 0"):
        run_open(worker, rate=rate, duration_s=1)


def test_something_is_outstanding(worker: Worker) -> None:
    with pytest.raises(BadRequest, match="at least 1"):
        run_closed(worker, outstanding=0, duration_s=1)


def test_one_request_without_an_answer_is_an_error(clock: Clock) -> None:
    result = run_open(Server(clock, 3600), rate=1, duration_s=1, warm_up_s=0, arrivals="constant")
    assert result.errors == {"no answer within 15 s of the end": 1}
    assert (result.sent, result.completed) == (1, 0)


def test_the_processor_time_of_the_generator_is_in_cores(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "process_time", lambda: clock.perf_counter() / 4)
    result = run_closed(Server(clock, 0.01), outstanding=1, duration_s=2, warm_up_s=1)
    assert result.cpu_cores == pytest.approx(0.25)
