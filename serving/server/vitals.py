"""From heartbeats to a verdict: which process of a server has died without ending.

Ages are counted on a clock of the supervisor's own that goes on by one second at most from look to
look. So nobody looks dead because the supervisor itself (or the whole machine) was stopped.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from latentry.serving.triton.heartbeats import Beat

SILENT_S = 10.0
LONGEST_LOADING_S = 600.0
IDLE_S = 10.0
# An honest batch of a minute is left alone, with some room for a busy machine.
LONGEST_EXECUTE_S = 65.0
_TIMES_LONGEST = 20.0
# Processor time below this is that of the threads that only look at the clock.
_IDLE_CPU_S = 0.02
_LONGEST_STEP_S = 1.0


class Died(Exception):
    """A server must be started again; the text says why.

    Attributes:
        exit_code: Of tritonserver, negative for a signal; None where it has not ended.
    """

    def __init__(self, why: str, *, exit_code: int | None = None) -> None:
        super().__init__(why)
        self.exit_code = exit_code


class WatchClock:
    """Seconds of watching: the time between two looks counts for one second at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self.now_s = 0.0

    def look(self) -> float:
        """Go on to now, and return it."""
        now_s = self._clock()
        self.now_s += min(now_s - self._last_s, _LONGEST_STEP_S)
        self._last_s = now_s
        return self.now_s


@dataclass
class _Seen:
    """What is remembered of one process, in seconds of the watch clock."""

    beat: Beat
    first_s: float
    beat_s: float
    execute_s: float
    busy_s: float
    busy_cpu_s: float


class Vitals:
    """Looks at the beats of one server's processes, again and again."""

    def __init__(self, clock: WatchClock, processes: int = 1) -> None:
        """Look at so many ``processes``, which share this machine's cores while they load."""
        self._clock = clock
        self._longest_loading_s = LONGEST_LOADING_S * max(1.0, processes / (os.cpu_count() or 1))
        self._seen: dict[str, _Seen] = {}

    def look(self, beats: Sequence[Beat]) -> None:
        """Take the newest beats.

        Raises:
            Died: A process fell silent, does not get ready, or an execute of it does not end.
        """
        now_s = self._clock.look()
        for beat in beats:
            seen = self._seen.get(beat.process)
            if seen is None or seen.beat.pid != beat.pid:
                self._seen[beat.process] = _Seen(beat, now_s, now_s, now_s, now_s, beat.cpu_s)
            elif seen.beat.number != beat.number:
                _take(seen, beat, now_s)
        for seen in self._seen.values():
            if seen.beat.ready:
                _check(seen, now_s)
            elif now_s - seen.first_s > self._longest_loading_s:
                raise Died(
                    f"{_name(seen.beat)} was not ready after {self._longest_loading_s:.0f} s"
                )

    @property
    def processes(self) -> int:
        """Number of processes that have begun."""
        return len(self._seen)

    @property
    def ready(self) -> int:
        """Number of processes that are ready."""
        return sum(seen.beat.ready for seen in self._seen.values())

    def is_running(self, model: str) -> bool:
        """Whether a process of ``model`` is at work on a batch (and no longer than it may be)."""
        beats = [seen.beat for seen in self._seen.values()]
        return any(beat.running for beat in beats if beat.model == model)

    def are_drained(self, models: Collection[str]) -> bool:
        """Whether no process of ``models`` takes anything new or has anything under way."""
        beats = [seen.beat for seen in self._seen.values() if seen.beat.model in models]
        return all(beat.draining and not beat.under_way for beat in beats)


def _take(seen: _Seen, beat: Beat, now_s: float) -> None:
    seen.beat_s = now_s
    if beat.begun != seen.beat.begun or not beat.running:
        seen.execute_s = now_s
        seen.busy_s, seen.busy_cpu_s = now_s, beat.cpu_s
    elif beat.cpu_s - seen.busy_cpu_s > _IDLE_CPU_S:
        seen.busy_s, seen.busy_cpu_s = now_s, beat.cpu_s
    seen.beat = beat


def _check(seen: _Seen, now_s: float) -> None:
    if now_s - seen.beat_s > SILENT_S:
        raise Died(f"{_name(seen.beat)} gave no sign of life for {SILENT_S:g} s")
    if not seen.beat.running:
        return
    most_s = max(LONGEST_EXECUTE_S, _TIMES_LONGEST * seen.beat.longest_s)
    if now_s - seen.execute_s > most_s:
        raise Died(f"a batch of {_name(seen.beat)} has not ended for {most_s:.0f} s")
    if now_s - seen.busy_s > IDLE_S:
        raise Died(f"a batch of {_name(seen.beat)} used no processor for {IDLE_S:g} s")


def _name(beat: Beat) -> str:
    return f"process {beat.pid} ({beat.process})"
