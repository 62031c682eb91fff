"""Time for the load generator that passes only when somebody waits: exact, and at once over."""

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest

from latentry.profiling.load import results, schedules

Done = Callable[[Exception | None], None]


class Clock:
    """Stands in for the module ``time``; what is due happens while somebody sleeps."""

    def __init__(self) -> None:
        self._now = 100.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = itertools.count()

    def perf_counter(self) -> float:
        """Return the time in seconds."""
        return self._now

    def process_time(self) -> float:
        """Return a time that does not pass: nothing here takes any."""
        return 0.0

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        self.wait(seconds, lambda: False)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call ``call`` so much later."""
        heapq.heappush(self._due, (self._now + seconds, next(self._turn), call))

    def wait(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Let time pass until ``condition`` holds, at most so much; return whether it does."""
        end = self._now + seconds
        while not condition() and self._due and self._due[0][0] <= end:
            self._now, _, call = heapq.heappop(self._due)
            call()
        if not condition():
            self._now = end
        return condition()


class Server:
    """Answers each request after ``service_s``, with so many workers; counts those under way."""

    def __init__(self, clock: Clock, service_s: float, workers: int = 1) -> None:
        self.clock = clock
        self.service_s = service_s
        self.free_at = [0.0] * workers
        self.under_way = self.most_under_way = 0

    def send(self, done: Done) -> None:
        """Start one request."""
        now = self.clock.perf_counter()
        start = max(now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, start + self.service_s)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def answer() -> None:
            self.under_way -= 1
            done(None)

        self.clock.after(start + self.service_s - now, answer)


def simulate(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the load generator a clock, and what waits by it; return the clock."""
    clock = Clock()

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return clock.wait(timeout or 0.0, self.is_set)

    class Queue:
        def __init__(self) -> None:
            self._items: deque[Any] = deque()
            self.put = self._items.append

        def get(self, timeout: float) -> Any:
            if not clock.wait(timeout, lambda: bool(self._items)):
                raise Empty
            return self._items.popleft()

    threads = SimpleNamespace(Event=Event, Lock=threading.Lock, get_ident=threading.get_ident)
    for module in (results, schedules):
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "threading", threads)
    monkeypatch.setattr(schedules, "SimpleQueue", Queue)
    return clock
