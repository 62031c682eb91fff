"""Which configuration holds a latency target at a higher rate.

The entry's configuration is changed one value at a time (coordinate search), each candidate on a
server of its own.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from latentry.contract.errors import LatentryError
from latentry.profiling.load.target import Target
from latentry.profiling.slo.final import FINAL_WINDOWS, Final, compare_in_turn, comparison_s
from latentry.profiling.slo.held_rate import Holding, find_held_rate
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.state import Candidate, SearchState, Serving


@dataclass
class Search:
    """A search for a better configuration of one entry.

    Attributes:
        serve: Serves the model with a configuration for as long as a block runs; gives the target.
        objective: What is to be held.
        default: The entry's ``serving`` part.
        most_batch: Largest batch that its export proved.
        budget_s: How long this run may take.
        state: What is known; candidates in it are not measured again.
        on_step: Called with a line for people before each candidate.
        clock: Seconds, of which the budget is spent.
        cores: Processor cores of the machine.
    """

    serve: Callable[[Serving], AbstractContextManager[Target]]
    objective: Objective
    default: Serving
    most_batch: int
    budget_s: float
    state: SearchState
    on_step: Callable[[str], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._before_s = self.state.spent_s

    def run(self) -> tuple[Candidate, bool]:
        """Go through the coordinates until nothing gets better, or the budget is spent.

        Returns:
            The best candidate, and whether everything was gone through.
        """
        best = self._candidate(self.default, floor=0.0)
        improved = True
        while improved:
            improved = False
            for name, value in self._changes():
                serving = {**best.serving, name: value}
                if _same(serving, best.serving):
                    continue
                if self.state.find(serving) is None and not self._has_time():
                    return best, False
                candidate = self._candidate(serving, floor=best.rate)
                if candidate.rate > best.rate:
                    best, improved = candidate, True
        return best, True

    def compare(self, best: Candidate) -> Final | None:
        """Compare ``best`` with the default, both being served; None where they are the same."""
        default = self.state.find(self.default)
        if default is None or best.serving == self.default or best.rate <= default.rate:
            return None
        rate = (best.rate * default.rate) ** 0.5 if default.rate else best.rate
        if self.state.final is not None and abs(self.state.final.rate - rate) < 1e-6 * rate:
            return self.state.final
        self.on_step(f"the best against the default, {FINAL_WINDOWS} windows each")
        with self.serve(self.default) as default_target, self.serve(best.serving) as best_target:
            self.state.final = compare_in_turn(default_target, best_target, self.objective, rate)
        self._save()
        return self.state.final

    def measure(self, serving: Serving, floor: float) -> Holding:
        """Return what a configuration holds, on a server of its own."""
        with self.serve(serving) as target:
            return find_held_rate(target, self.objective, floor=floor)

    def _candidate(self, serving: Serving, *, floor: float) -> Candidate:
        """Return what a configuration holds: from the state, or measured now and saved."""
        if known := self.state.find(serving):
            return known
        self.on_step(_short(serving))
        start = self.clock()
        holding, failure = None, ""
        try:
            holding = self.measure(serving, floor)
        except LatentryError as error:
            if serving == self.default:
                raise
            failure = str(error)
        candidate = Candidate(
            serving=serving,
            holding=holding,
            failure=failure,
            seconds=self.clock() - start,
        )
        self.state.candidates.append(candidate)
        self._save()
        return candidate

    def _changes(self) -> Iterator[tuple[str, int]]:
        for name, values in coordinates(self.most_batch, self.cores).items():
            for value in values:
                yield name, value

    def _has_time(self) -> bool:
        longest = max((item.seconds for item in self.state.candidates), default=0.0)
        rate = max((item.rate for item in self.state.candidates), default=0.0)
        last_s = comparison_s(self.objective, max(rate, 1.0))
        spent_s = self.clock() - self._start
        return spent_s + longest + last_s < self.budget_s

    def _save(self) -> None:
        self.state.spent_s = self._before_s + self.clock() - self._start
        self.state.save()


def coordinates(most_batch: int, cores: int) -> dict[str, tuple[int, ...]]:
    """Return the values that are tried, by field of a build's ``serving`` part.

    Batches never exceed what the export proved; threads above the cores only wait for each other.
    """
    threads = sorted({1, max(1, cores // 2), cores})
    batches = [size for size in (4, 8, 16, 32, 64, 128) if size < most_batch]
    return {
        "instances": tuple(range(1, min(2 * cores, 6) + 1)),
        "threads": tuple(threads),
        "max_batch_size": (*batches, most_batch),
        "max_queue_delay_microseconds": (0, 200, 1000, 4000),
    }


def _same(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two configurations are served alike: 0 threads means one for each core."""

    def effective(serving: Mapping[str, int]) -> dict[str, int]:
        return {**serving, "threads": serving["threads"] or os.cpu_count() or 1}

    return effective(one) == effective(other)


def _short(serving: Mapping[str, int]) -> str:
    return (
        f"{serving['instances']} instances x {serving['threads'] or 'all'} threads, "
        f"batches to {serving['max_batch_size']}, "
        f"queue delay {serving['max_queue_delay_microseconds']} us"
    )
