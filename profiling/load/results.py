"""What becomes of the requests of a load, and the figures of its window."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAIN_S = 15.0


@dataclass(frozen=True)
class LoadResult:
    """What one window of load gave. Requests of the warm-up are in no figure.

    Attributes:
        rate: Requests a second that were due; None where a number was kept outstanding.
        seconds: Length of the window.
        sent: Requests that were due (or, with a number kept outstanding, ended) in the window.
        completed: Those of them that were answered well.
        errors: Texts of the errors of the others, with their numbers.
        throughput: Good answers a second that came in within the window.
        latencies_s: Of each good answer, float64 [completed], from when the request was due (or,
            with a number kept outstanding, sent).
        late_s: How late requests were sent, the 99th percentile: the generator's own delay, which
            is part of the latencies.
        cpu_cores: What this process used of the processor, in cores.
    """

    rate: float | None
    seconds: float
    sent: int
    completed: int
    errors: Counter[str]
    throughput: float
    latencies_s: NDArray[np.float64]
    late_s: float
    cpu_cores: float

    def percentiles_ms(self, percents: Sequence[float] = (50, 90, 95, 99)) -> dict[float, float]:
        """Return percentiles of the latency in milliseconds; NaN where nothing was answered."""
        if not self.completed:
            return dict.fromkeys(percents, float("nan"))
        values = np.percentile(self.latencies_s, percents) * 1e3
        return {percent: float(value) for percent, value in zip(percents, values, strict=True)}


class Record:
    """Collects what becomes of requests; ``done`` callbacks come from any thread."""

    def __init__(self, warm_up_s: float, duration_s: float, *, by_end: bool = False) -> None:
        self._warm_up_s = warm_up_s
        self._duration_s = duration_s
        self._by_end = by_end
        self._all_ended = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self.sent = 0
        self.late: list[float] = []
        # (due, ended, error), appended by any thread; appending to a list is atomic.
        self.ended: list[tuple[float, float, Exception | None]] = []

    def begin(self, start: float) -> None:
        """Say when the warm-up begins, on the clock of ``time.perf_counter``."""
        self._start = start
        self._cpu = time.process_time()

    def expect(
        self, due: float, on_end: Callable[[Exception | None], None] = lambda _: None
    ) -> Callable[[Exception | None], None]:
        """Count a request as sent; return its ``done``."""
        with self._lock:  # the threads that bring answers send, too
            self.sent += 1

        def done(error: Exception | None) -> None:
            self.ended.append((due, time.perf_counter(), error))
            on_end(error)
            if self._closed and len(self.ended) >= self.sent:
                self._all_ended.set()

        return done

    def refuse(self, due: float, why: str) -> None:
        """Count a request that was due and not sent."""
        self.sent += 1
        self.ended.append((due, time.perf_counter(), RuntimeError(why)))

    def result(self, rate: float | None) -> LoadResult:
        """Wait for what is still under way and return the figures of the window."""
        cpu_cores = (time.process_time() - self._cpu) / (time.perf_counter() - self._start)
        self._closed = True
        if len(self.ended) < self.sent:
            self._all_ended.wait(_DRAIN_S)
        ended = list(self.ended)
        first = self._start + self._warm_up_s
        last = first + self._duration_s
        counted = [
            (due, end, error)
            for due, end, error in ended
            if first <= (end if self._by_end else due) < last
        ]
        latencies = np.array([end - due for due, end, error in counted if error is None])
        errors = Counter(str(error) for *_, error in counted if error is not None)
        if (missing := self.sent - len(ended)) > 0:
            errors[f"no answer within {_DRAIN_S:g} s of the end"] += missing
        return LoadResult(
            rate=rate,
            seconds=self._duration_s,
            sent=len(counted) + missing,
            completed=len(latencies),
            errors=errors,
            throughput=sum(first <= end < last and error is None for _, end, error in ended)
            / self._duration_s,
            latencies_s=latencies.astype(np.float64),
            late_s=float(np.percentile(self.late, 99)) if self.late else 0.0,
            cpu_cores=cpu_cores,
        )
