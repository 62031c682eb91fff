"""How many requests a second a latency target allows, and which configuration allows more.

``p99=50ms`` is held at a rate if the 99th percentile of the latency stays at or below 50 ms while
requests arrive as a Poisson process of that rate, each counted from when it was due, and none
fails. The largest such rate is found by bisection. The configuration is then changed one value at a
time (coordinate search), each candidate on a server of its own.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from latentry.contract.errors import BadRequest, LatentryError, ServerFault
from latentry.contract.files import parse_json, read_regular
from latentry.profiling.estimates import (
    Estimate,
    needed_samples,
    percentile_estimate,
    permutation_p,
)
from latentry.profiling.load.load import LoadResult, Target, TritonTarget, run_closed, run_open

FINAL_WINDOWS = 7
SIGNIFICANCE = 0.05

_OBJECTIVE = re.compile(r"p(?P<percent>\d{1,2}(\.\d+)?)=(?P<limit>\d+(\.\d+)?)(?P<unit>us|ms|s)")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_PRECISION = 0.04  # of the rate
_LEAST_SHARE = 0.02  # of the saturation; below it nothing is looked for
_LEAST_PROBE_S, _MOST_PROBE_S = 1.5, 60.0
_PROBE_SAMPLES = 1.25  # of what the percentile needs: the number of arrivals is random
_PROBE_WINDOWS = 4
_WARM_UP_S = 0.5
_TWO_SERVERS_S = 8.0  # until both are ready, and gone again
_OUTSTANDING = 64
_SATURATION_S, _SLOW_SATURATION_S = 1.0, 10.0
_SMALLER_PERCENTS = (99.0, 95.0, 90.0, 75.0, 50.0)
_STATE_FILE = "slo-search.json"
_MOST_STATE_BYTES = 64 * 2**20

Serving = dict[str, int]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(_Part):
    """A percentile of the latency and what it may be at most."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g} <= {self.limit_ms:g} ms"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the objective in a text such as ``p99=50ms``; raises BadRequest."""
        match = _OBJECTIVE.fullmatch(text)
        if not match or not 0 < float(match["percent"]) < 100 or not float(match["limit"]):
            raise BadRequest(f"--slo {text!r} is not understood; write p99=50ms, p95=0.2s, ...")
        limit_ms = float(match["limit"]) * _MS[match["unit"]]
        return cls(percent=float(match["percent"]), limit_ms=limit_ms)


class Probe(_Part):
    """One rate, tried.

    Attributes:
        rate: Requests a second that were due.
        requests: How many were answered.
        errors: How many failed, by text.
        latency_ms: The objective's percentile.
        load_cores: What the load generator used of the processor.
    """

    rate: float
    requests: int
    errors: dict[str, int]
    latency_ms: Estimate
    load_cores: float

    def holds(self, limit_ms: float) -> bool:
        """Whether the target was held, as far as was seen."""
        value = self.latency_ms.value
        return not self.errors and value is not None and value <= limit_ms

    def surely_holds(self, limit_ms: float) -> bool:
        """Whether the whole interval is within the limit."""
        high = self.latency_ms.high
        return self.holds(limit_ms) and high is not None and high <= limit_ms

    def surely_fails(self, limit_ms: float) -> bool:
        """Whether the whole interval is beyond the limit."""
        low = self.latency_ms.low
        return bool(self.errors) or (low is not None and low > limit_ms)


class Holding(_Part):
    """The answer for one configuration.

    Attributes:
        rate: Largest rate that was tried and held; 0 where none was.
        low: Largest rate at which the whole interval of the percentile was within the limit.
        high: Smallest rate above ``rate`` at which it was beyond; None where no such was tried.
        saturation: Requests a second with 64 outstanding, whatever the latency.
        probes: Everything that was tried, in order.
        measured_at: When it was found, UTC.
    """

    rate: float
    low: float
    high: float | None
    saturation: float
    probes: tuple[Probe, ...]
    measured_at: str = ""


class Candidate(_Part):
    """A configuration and what it holds, or why it could not be served."""

    serving: Serving
    holding: Holding | None = None
    failure: str = ""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """What it holds; 0 where it holds nothing or could not be served."""
        return self.holding.rate if self.holding else 0.0


class Final(_Part):
    """The best candidate against the default, both being served, in alternating windows.

    Attributes:
        rate: Requests a second: between what the two were found to hold.
        default_ms: The objective's percentile in each window of the default.
        best_ms: Likewise of the best candidate.
        p_value: Of the two being equal: a two-sided permutation test on the ranks, which is the
            exact test of Wilcoxon, Mann and Whitney; one hiccup of the machine is one rank.
        better: Whether the best held the target in most of its windows and the default did not,
            and the difference is significant.
        measured_at: When they were compared, UTC.
    """

    rate: float
    default_ms: tuple[float, ...]
    best_ms: tuple[float, ...]
    p_value: float
    better: bool
    measured_at: str = ""


class SloAnswer(_Part):
    """What is written into the report.

    Attributes:
        objective: What was asked.
        running: The answer for the server that was there, left as it was.
        running_serving: Its configuration.
        candidates: Every configuration that was tried, the entry's own first.
        final: The comparison of the best with the default; None where nothing better was found.
        recommended: The ``serving`` part to be written by ``latentry models tune``; None where
            nothing is significantly better than the default.
        finished: Whether every coordinate was gone through within the budget.
        spent_s: Seconds of all runs together.
        no_search: Why only the running server was asked, where that was not what was asked for.
    """

    objective: Objective
    running: Holding
    running_serving: Serving
    candidates: tuple[Candidate, ...] = ()
    final: Final | None = None
    recommended: Serving | None = None
    finished: bool = False
    spent_s: float = 0.0
    no_search: str = ""

    @property
    def oldest(self) -> str:
        """When the oldest of its measurements was made; empty where that is not known."""
        holdings = [self.running, *(item.holding for item in self.candidates), self.final]
        return min((item.measured_at for item in holdings if item and item.measured_at), default="")


def find_held_rate(target: Target, objective: Objective, *, floor: float = 0.0) -> Holding:
    """Find the largest rate at which ``target`` holds ``objective``, by bisection.

    Args:
        target: What is asked.
        objective: What it has to hold.
        floor: A rate that must be held for the search to go on: what another configuration holds.

    Raises:
        BadRequest: The target is too slow for this percentile to be seen within a probe.
        ServerFault: It answers nothing at all.
    """
    saturation = _saturation(target)
    least = _least_rate(objective.percent)
    if not floor:
        _check_samples(objective, saturation)
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(probe_rate(target, objective, rate, seed=len(probes)))
        return probes[-1].holds(objective.limit_ms)

    low, high = 0.0, max(saturation, 1.0) * 1.05
    if floor and not holds(floor * (1 + _PRECISION)):
        high = low
    elif floor:
        low = floor * (1 + _PRECISION)
        high = max(high, low * 1.1)
    # Below the least rate there are too few requests for an answer, not one that is "no".
    least = max(least, _LEAST_SHARE * saturation)
    while high - max(low, least) > _PRECISION * high:
        middle = max((low + high) / 2, least)
        if holds(middle):
            low = middle
        else:
            high = middle
    return _holding(probes, objective, saturation)


def probe_rate(target: Target, objective: Objective, rate: float, *, seed: int = 0) -> Probe:
    """Try one rate for as long as the percentile needs; a rate that fails gets a second run.

    Both runs then count together, so that one hiccup of the machine does not decide alone.

    Raises:
        BadRequest: The percentile needs more requests than come within a probe.
    """
    _check_samples(objective, rate)
    seconds = _PROBE_SAMPLES * needed_samples(objective.percent) / rate
    seconds = min(max(seconds, _LEAST_PROBE_S), _MOST_PROBE_S)
    results: list[LoadResult] = []
    for turn in range(2):
        results.append(
            run_open(
                target, rate=rate, duration_s=seconds, warm_up_s=_WARM_UP_S, seed=2 * seed + turn
            )
        )
        probe = _probe(rate, objective, results)
        hopeless = probe.latency_ms.value and probe.latency_ms.value > 3 * objective.limit_ms
        if probe.holds(objective.limit_ms) or hopeless:
            break
    return probe


def _least_rate(percent: float) -> float:
    return _PROBE_SAMPLES * needed_samples(percent) / _MOST_PROBE_S


def _check_samples(objective: Objective, rate: float) -> None:
    """Raise BadRequest where a probe at ``rate`` cannot give the percentile."""
    if rate >= _least_rate(objective.percent) * (1 - 1e-9):
        return
    needed = needed_samples(objective.percent)
    message = f"p{objective.percent:g} needs {needed:,} requests; "
    message += f"at {rate:.2g}/s that takes {needed / rate:,.0f} s" if rate else "none is answered"
    message += f", and a rate is tried for {_MOST_PROBE_S:g} s at most; "
    smaller = [percent for percent in _SMALLER_PERCENTS if _least_rate(percent) <= rate]
    if smaller:
        raise BadRequest(f"{message}ask for p{smaller[0]:g} or less")
    raise BadRequest(f"{message}this model is too slow for a target of requests/s")


def _saturation(target: Target) -> float:
    """Return the requests a second with 64 outstanding; a slow target is asked for longer."""
    for seconds in (_SATURATION_S, _SLOW_SATURATION_S):
        result = run_closed(
            target, outstanding=_OUTSTANDING, duration_s=seconds, warm_up_s=_WARM_UP_S
        )
        if result.completed >= _OUTSTANDING:
            break
        if result.errors and not result.completed:
            raise ServerFault(f"every request failed: {next(iter(result.errors))}")
    return result.throughput


@dataclass
class SearchState:
    """What a search has found so far, in a file that is replaced whole after each candidate.

    Candidates that failed are left out when it is read, so that they are tried again.
    """

    path: Path
    key: dict[str, Any]
    running: Holding | None = None
    candidates: list[Candidate] = field(default_factory=list)
    final: Final | None = None
    spent_s: float = 0.0

    @classmethod
    def open(cls, folder: Path, key: dict[str, Any]) -> Self:
        """Return the state in ``folder``, or a new one.

        Raises:
            BadRequest: The folder holds a search for something else, or a damaged one.
        """
        state = cls(folder / _STATE_FILE, key)
        try:
            saved = parse_json(read_regular(state.path, most=_MOST_STATE_BYTES))
            state.running = Holding.model_validate(saved["running"]) if saved["running"] else None
            known = [Candidate.model_validate(item) for item in saved["candidates"]]
            state.candidates = [item for item in known if item.holding is not None]
            state.final = Final.model_validate(saved["final"]) if saved["final"] else None
            state.spent_s = float(saved["spent_s"])
        except FileNotFoundError:
            return state
        except (ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise BadRequest(f"{state.path} is not understood; remove it to start anew") from error
        if saved.get("key") != key:
            raise BadRequest(
                f"{folder} holds the search for something else ({saved.get('key')}); give another "
                "folder with --out, or remove it to start anew"
            )
        return state

    def find(self, serving: Serving) -> Candidate | None:
        """Return what is known of a configuration."""
        return next((item for item in self.candidates if item.serving == serving), None)

    def save(self) -> None:
        """Write the file: whole, or as it was."""
        content = {
            "key": self.key,
            "running": self.running.model_dump(mode="json") if self.running else None,
            "candidates": [item.model_dump(mode="json") for item in self.candidates],
            "final": self.final.model_dump(mode="json") if self.final else None,
            "spent_s": self.spent_s,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".tmp")
        with half.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(self.path)


@dataclass
class Search:
    """A search for a better configuration of one entry.

    Attributes:
        serve: Serves ``model`` with a configuration for as long as a block runs; gives the address.
        model: Name of the model.
        objective: What is to be held.
        default: The entry's ``serving`` part.
        most_batch: Largest batch that its export proved.
        budget_s: How long this run may take.
        state: What is known; candidates in it are not measured again.
        on_step: Called with a line for people before each candidate.
    """

    serve: Callable[[Serving], AbstractContextManager[str]]
    model: str
    objective: Objective
    default: Serving
    most_batch: int
    budget_s: float
    state: SearchState
    on_step: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._start = time.monotonic()
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
        with (
            self.serve(self.default) as default_url,
            self.serve(best.serving) as best_url,
            TritonTarget(default_url, self.model) as default_target,
            TritonTarget(best_url, self.model) as best_target,
        ):
            pair = (default_target, best_target)
            windows: tuple[list[float], list[float]] = ([], [])
            for turn in range(FINAL_WINDOWS):
                # There and back again, so that neither always comes first.
                for side in (0, 1) if turn % 2 == 0 else (1, 0):
                    windows[side].append(self._window_ms(pair[side], rate, turn))
        p_value = permutation_p(*_ranks(*windows))
        default_median, best_median = (float(np.median(values)) for values in windows)
        self.state.final = Final(
            rate=rate,
            default_ms=tuple(windows[0]),
            best_ms=tuple(windows[1]),
            p_value=p_value,
            better=best_median <= self.objective.limit_ms < default_median
            and p_value < SIGNIFICANCE,
            measured_at=_now(),
        )
        self._save()
        return self.state.final

    def _window_ms(self, target: Target, rate: float, seed: int) -> float:
        result = run_open(
            target, rate=rate, duration_s=self._window_s(rate), warm_up_s=_WARM_UP_S, seed=seed
        )
        # A request without an answer took longer than any that has one.
        latencies = np.append(result.latencies_s, [np.inf] * sum(result.errors.values()))
        value = np.percentile(latencies, self.objective.percent, method="higher")
        return float(min(value * 1e3, 1e6))

    def _window_s(self, rate: float) -> float:
        needed = 1.1 * needed_samples(self.objective.percent) / rate
        return min(max(needed, _LEAST_PROBE_S), _MOST_PROBE_S)

    def measure(self, serving: Serving, floor: float) -> Holding:
        """Return what a configuration holds, on a server of its own."""
        with (
            self.serve(serving) as url,
            TritonTarget(url, self.model) as target,
        ):
            return find_held_rate(target, self.objective, floor=floor)

    def _candidate(self, serving: Serving, *, floor: float) -> Candidate:
        """Return what a configuration holds: from the state, or measured now and saved."""
        if known := self.state.find(serving):
            return known
        self.on_step(_short(serving))
        start = time.monotonic()
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
            seconds=time.monotonic() - start,
        )
        self.state.candidates.append(candidate)
        self._save()
        return candidate

    def _changes(self) -> Iterator[tuple[str, int]]:
        for name, values in coordinates(self.most_batch, os.cpu_count() or 1).items():
            for value in values:
                yield name, value

    def _has_time(self) -> bool:
        longest = max((item.seconds for item in self.state.candidates), default=0.0)
        rate = max((item.rate for item in self.state.candidates), default=0.0)
        comparison_s = 2 * FINAL_WINDOWS * (self._window_s(max(rate, 1.0)) + 1) + _TWO_SERVERS_S
        spent_s = time.monotonic() - self._start
        return spent_s + longest + comparison_s < self.budget_s

    def _save(self) -> None:
        self.state.spent_s = self._before_s + time.monotonic() - self._start
        self.state.save()


def coordinates(most_batch: int, cores: int) -> dict[str, tuple[int, ...]]:
    """Return the values that are tried, by field of the manifest's ``serving`` part.

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


def answer(
    search: Search | None, running: Holding, running_serving: Serving, objective: Objective
) -> SloAnswer:
    """Run ``search``, where there is one, and return everything for the report."""
    if search is None:
        return SloAnswer(objective=objective, running=running, running_serving=running_serving)
    best, finished = search.run()
    final = search.compare(best)
    return SloAnswer(
        objective=objective,
        running=running,
        running_serving=running_serving,
        candidates=tuple(search.state.candidates),
        final=final,
        recommended=best.serving if final and final.better else None,
        finished=finished,
        spent_s=search.state.spent_s,
    )


def _holding(probes: Sequence[Probe], objective: Objective, saturation: float) -> Holding:
    limit = objective.limit_ms
    rate = max((probe.rate for probe in probes if probe.holds(limit)), default=0.0)
    sure = [p.rate for p in probes if p.surely_holds(limit) and p.rate <= rate]
    beyond = [p.rate for p in probes if p.surely_fails(limit) and p.rate > rate]
    return Holding(
        rate=rate,
        low=max(sure, default=0.0),
        high=min(beyond, default=None),
        saturation=saturation,
        probes=tuple(probes),
        measured_at=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _probe(rate: float, objective: Objective, results: Sequence[LoadResult]) -> Probe:
    errors: dict[str, int] = {}
    windows = []
    for result in results:
        for text, count in result.errors.items():
            errors[text] = errors.get(text, 0) + count
        windows += np.array_split(result.latencies_s * 1e3, _PROBE_WINDOWS)
    return Probe(
        rate=rate,
        requests=sum(result.completed for result in results),
        errors=errors,
        latency_ms=percentile_estimate(windows, objective.percent),
        load_cores=max(result.cpu_cores for result in results),
    )


def _ranks(first: Sequence[float], second: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the ranks of the values among all of them; equal values share theirs."""
    pooled = np.array([*first, *second])
    ranks = [float((pooled < value).sum() + (pooled == value).sum() / 2) for value in pooled]
    return ranks[: len(first)], ranks[len(first) :]


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
