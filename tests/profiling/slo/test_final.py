import math
from itertools import groupby

import pytest
from profiles.simulated_time import Clock, Done, Server, simulate

from latentry.profiling.slo import final
from latentry.profiling.slo.final import compare_in_turn, comparison_s, judge
from latentry.profiling.slo.objective import Objective

OBJECTIVE = Objective(percent=90, limit_ms=50)
CERTAIN = 2 / math.comb(14, 7)  # of all ways to divide 14 windows, two are as far apart


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time that the load generator lives in."""
    return simulate(monkeypatch)


@pytest.mark.parametrize(
    ("default_s", "best_s", "better"),
    [
        (0.06, 0.03, True),
        (0.06, 0.05, True),  # the limit itself is held
        (0.06, 0.055, False),  # faster, but it does not hold the target either
        (0.04, 0.03, False),  # faster, but the default holds it too
        (0.05, 0.03, False),
        (0.03, 0.06, False),
    ],
)
def test_the_better_one_holds_what_the_default_does_not(
    clock: Clock, default_s: float, best_s: float, better: bool
) -> None:
    # So many workers that every answer takes as long as it takes to make.
    default, best = Server(clock, default_s, workers=100), Server(clock, best_s, workers=100)
    found = compare_in_turn(default, best, Objective(percent=90, limit_ms=50.001), 100)
    assert found.default_ms == pytest.approx([1e3 * default_s] * 7)
    assert found.best_ms == pytest.approx([1e3 * best_s] * 7)
    assert (found.rate, found.better) == (100, better)
    assert found.measured_at


def test_only_what_is_significant_is_better() -> None:
    sure = judge(OBJECTIVE, 9, [60, 61, 62, 63, 64, 65, 66], [40, 41, 42, 43, 44, 45, 46])
    assert sure.better
    assert sure.p_value == pytest.approx(CERTAIN)
    # In most windows the one holds the target and the other does not, as coins might fall.
    unsure = judge(OBJECTIVE, 9, [60, 61, 62, 63, 40, 41, 42], [43, 44, 45, 46, 64, 65, 66])
    assert not unsure.better
    assert unsure.p_value > 0.3
    assert (unsure.default_ms[0], unsure.best_ms[0], unsure.rate) == (60, 43, 9)


def test_one_hiccup_is_one_rank() -> None:
    calm = judge(OBJECTIVE, 9, [60, 61, 62, 63, 64, 65, 66], [40, 41, 42, 43, 44, 45, 67])
    wild = judge(OBJECTIVE, 9, [60, 61, 62, 63, 64, 65, 66], [40, 41, 42, 43, 44, 45, 1e6])
    assert calm.p_value == wild.p_value < 0.05
    assert wild.better


def test_neither_always_comes_first_and_both_are_asked_alike(clock: Clock) -> None:
    asked: list[tuple[str, float]] = []

    class Noted(Server):
        name: str

        def send(self, done: Done) -> None:
            asked.append((self.name, clock.perf_counter()))
            super().send(done)

    default, best = Noted(clock, 0.01, workers=9), Noted(clock, 0.01, workers=9)
    default.name, best.name = "default", "best"
    compare_in_turn(default, best, OBJECTIVE, 100)
    names = [name for name, _ in groupby(asked, key=lambda item: item[0])]
    assert names == ["default", "best"] * 4  # there and back again: two windows of each but at ends
    assert sum(name == "best" for name, _ in asked) == len(asked) / 2


class Failing:
    """Answers after 10 ms, and fails once in so many times."""

    def __init__(self, clock: Clock, every: int) -> None:
        self.clock, self.every, self.asked = clock, every, 0

    def send(self, done: Done) -> None:
        self.asked += 1
        error = RuntimeError("no") if self.asked % self.every == 0 else None
        self.clock.after(0.01, lambda: done(error))


def test_a_request_that_failed_took_longer_than_any(clock: Clock) -> None:
    few, many = Failing(clock, 20), Failing(clock, 5)
    assert final._window_ms(few, OBJECTIVE, 100, 0) == pytest.approx(10)
    assert final._window_ms(many, OBJECTIVE, 100, 0) == 1e6


def test_the_time_of_a_comparison_is_reckoned(clock: Clock) -> None:
    start = clock.perf_counter()
    default, best = Server(clock, 0.01, workers=9), Server(clock, 0.01, workers=9)
    compare_in_turn(default, best, OBJECTIVE, 20)
    spent = clock.perf_counter() - start
    assert spent < comparison_s(OBJECTIVE, 20) < 1.5 * spent
    # As long as 1.1 times the samples of the percentile take, within bounds.
    assert final._window_s(OBJECTIVE, 20) == pytest.approx(5.5)
    assert final._window_s(OBJECTIVE, 1e6) == 1.5
    assert final._window_s(OBJECTIVE, 0.1) == 60


def test_ranks_share_a_tie() -> None:
    assert final._ranks([1, 5], [5, 9]) == ([0.5, 2.0], [2.0, 3.5])
