"""One tritonserver from its start to its end: wait until it is ready, watch it, drain it.

Triton 2.51 stays "ready" when a process that runs its models is dead or stopped, does not always
end on SIGTERM, breaks open streams at once when it gets one, and gives no memory back; so all of
that is seen to from outside.
"""

import contextlib
import itertools
import logging
import math
import subprocess
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import psutil

from latentry.contract.errors import ServeError
from latentry.contract.wire import STREAM_SUFFIX
from latentry.serving.entries.repository import Entry
from latentry.serving.server.canary import Canary, NoGolden, Pending, QueueFull
from latentry.serving.server.folder import ServerFolder
from latentry.serving.server.memory import MemoryLimit, mib, used_bytes
from latentry.serving.server.probe import ReadinessProbe
from latentry.serving.server.vitals import Died, Vitals, WatchClock
from latentry.serving.triton.heartbeats import BEAT_EVERY_S, read_beats
from latentry.serving.triton.tritonserver import Endpoint

_LOGGER = logging.getLogger(__name__)

TICK_S = 0.1
_CANARY_EVERY_S = 5.0
_CANARY_SHARE = 0.01  # of the engine's time, at most
_MEMORY_EVERY_S = 5.0
_SAY_EVERY_S = 15.0
_LAST_ANSWERS_S = 2.0

# What is drained because of its memory must not grow on meanwhile.
_LONGEST_FULL_DRAIN_S = 10.0
_MOST_OVER_LIMIT = 1.5


class Full(Exception):
    """The server should be drained and started again; the text says why."""


class _Stopped(Exception):
    """The supervisor was told to stop."""


class Signals(Protocol):
    """What tells a server to stop.

    Attributes:
        stops: How often it was told so.
    """

    stops: int


@dataclass(frozen=True)
class Limits:
    """How long things may take, and how much memory.

    Attributes:
        start_s: Longest time without a sign of life until ready.
        canary_s: Longest time in which a model answers nobody and is at work on nothing.
        drain_s: Longest time for running requests after the signal to stop.
    """

    start_s: float = 60.0
    canary_s: float = 30.0
    drain_s: float = 10.0


class ServerLife:
    """One tritonserver that was just started."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        endpoint: Endpoint,
        folder: ServerFolder,
        entries: list[Entry],
        signals: Signals,
        limits: Limits,
        memory: MemoryLimit,
        streams: Collection[str],
    ) -> None:
        self._process = process
        self._memory = memory
        self._folder = folder
        self._entries = entries
        self._signals = signals
        self._limits = limits
        self._clock = WatchClock()
        self._canary = Canary(endpoint.url, entries)
        self._probe = ReadinessProbe(endpoint.url, self._clock.look)
        self._streams = frozenset(f"{name}{STREAM_SUFFIX}" for name in streams)
        instances = sum(entry.build.serving.instances for entry in entries)
        self._expected = instances + len(self._streams)
        self._vitals = Vitals(self._clock, self._expected)
        self._stubs: list[psutil.Process] = []
        self._looked_s = 0.0

    def close(self) -> None:
        """Give up the connections to it."""
        self._canary.close()
        self._probe.close()

    def wait_until_ready(self) -> None:
        """Return when it has drawn every golden, or when told to stop.

        Raises:
            Died: It ended, hung, or showed no sign of life for too long.
            ServeError: It draws something wrong, or takes too much memory from the start.
        """
        progress = self._progress()
        self._probe.step()
        while not (self._probe.ready and self._vitals.ready >= self._expected):
            if self._signals.stops:
                return
            next(progress)
            self._tick()
            self._probe.step()
            self._folder.close_shared_memory()
        try:
            warnings = self._canary.check_all(self._patience)
        except _Stopped:
            return
        except NoGolden as error:
            raise Died(str(error)) from error
        for warning in warnings:
            _LOGGER.warning("%s", warning)
        self._stubs = self._find_stubs()
        if len(self._stubs) < self._expected:
            raise Died("a model process is missing")
        self._memory.settle(self._used_bytes())

    def watch(self) -> None:
        """Return when told to stop.

        Raises:
            Died: It ended, or a part of it hangs.
            Full: It takes more memory than it may.
            ServeError: It draws something wrong.
        """
        rounds = (self._canary_rounds(), self._memory_rounds())
        while not self._signals.stops:
            self._tick()
            self._check_answers()
            for steps in rounds:
                next(steps)

    def drain(self, *, full: bool = False) -> None:
        """Refuse what is new, let streams finish, then let Triton finish what it has and end.

        A second signal, or the time, ends the patience; where it is ``full``, ten seconds at most,
        and growing on.
        """
        longest_s = min(self._limits.drain_s, _LONGEST_FULL_DRAIN_S if full else math.inf)
        deadline_s = time.monotonic() + longest_s
        _LOGGER.info("draining: what is under way has %g s", longest_s)
        rounds = self._memory_rounds(_MOST_OVER_LIMIT) if full else itertools.repeat(None)
        with contextlib.suppress(Died, Full):
            # Triton breaks streams when it is told to end; so it is told when none is left.
            if self._folder.mark_draining():
                while not self._vitals.are_drained(self._streams) and self._patient(deadline_s):
                    self._tick(at_once=True)
                    self._check_answers()
                    next(rounds)
        self.close()
        self._process.terminate()
        last_s = max(deadline_s, time.monotonic() + _LAST_ANSWERS_S)
        # Triton lets its model processes go when no request is left, and goes on until every stream
        # was taken and closed by its reader; whose buffers may hold seconds of it, while nothing
        # moves any more that could be seen from here.
        while self._patient(last_s) and self._process.poll() is None:
            time.sleep(TICK_S)

    def _check_answers(self) -> None:
        if self._probe.step():
            raise Died("tritonserver does not answer whether it is ready")

    def _patient(self, deadline_s: float) -> bool:
        return time.monotonic() < deadline_s and self._signals.stops < 2

    def _tick(self, *, at_once: bool = False) -> None:
        time.sleep(TICK_S)
        self._look(at_once=at_once)

    def _look(self, *, at_once: bool = False) -> None:
        """Raise Died where something is dead; beats are read when it is time, or ``at_once``."""
        if (code := self._process.poll()) is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise Died(f"tritonserver ended with {how}", exit_code=code)
        if any(_has_ended(stub) for stub in self._stubs):
            raise Died("a model process died")
        if at_once or self._clock.look() - self._looked_s >= BEAT_EVERY_S:
            self._vitals.look(read_beats(self._folder.signs))
            self._looked_s = self._clock.now_s

    def _progress(self) -> Iterator[None]:
        """Say how far the start is; raise Died where nothing has moved for too long."""
        last, last_s = (-1, -1, -1), 0.0
        said_s = _SAY_EVERY_S
        while True:
            now_s = self._clock.look()
            # Once all are ready, processor time is no sign that anything goes on.
            busy_s = round(self._cpu_s()) if self._vitals.ready < self._expected else 0
            signs = (self._vitals.processes, self._vitals.ready, busy_s)
            if signs != last:
                last, last_s = signs, now_s
            elif now_s - last_s > self._limits.start_s:
                raise Died(
                    f"{self._vitals.ready} of {self._expected} model processes were ready, and "
                    f"nothing moved for {self._limits.start_s:g} s"
                )
            if now_s > said_s:
                said_s = now_s + _SAY_EVERY_S
                _LOGGER.warning(
                    "starting: %d of %d model processes are ready, %.0f s so far",
                    *(self._vitals.ready, self._expected, now_s),
                )
            yield

    def _cpu_s(self) -> float:
        """Return the processor seconds that all its processes have used."""
        total = 0.0
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(self._process.pid)
            for process in (server, *server.children(recursive=True)):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _find_stubs(self) -> list[psutil.Process]:
        """Return the processes that run the models."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess as error:
            raise Died("tritonserver ended") from error

    def _patience(self, model: str, waited_s: float) -> bool:
        """Return whether to go on waiting for a golden of ``model``."""
        self._look()
        self._check_answers()
        if self._signals.stops:
            raise _Stopped
        return waited_s < self._limits.canary_s or self._vitals.is_running(model)

    def _memory_rounds(self, times: float = 1.0) -> Iterator[None]:
        """Compare its memory with ``times`` the limit now and then; one step at each tick."""
        most = round(times * self._memory.most)
        while True:
            yield from _wait(_MEMORY_EVERY_S / times)
            if (used := self._used_bytes(most)) > most:
                raise Full(f"the server takes {mib(used)}, more than {mib(most)}")

    def _used_bytes(self, at_least: int = 0) -> int:
        return used_bytes([psutil.Process(self._process.pid), *self._stubs], at_least)

    def _canary_rounds(self) -> Iterator[None]:
        """Ask for one golden after the other, never waiting; one step at each tick."""
        pause_s = _CANARY_EVERY_S
        for turn in itertools.count():
            yield from _wait(pause_s)
            entry = self._entries[turn % len(self._entries)]
            golden = turn // len(self._entries) % entry.build.goldens.count
            asked = time.monotonic()
            pending = self._canary.ask(entry.name, golden)
            yield from self._wait_for_golden(entry.name, golden, pending)
            pause_s = max(_CANARY_EVERY_S, (time.monotonic() - asked) / _CANARY_SHARE)

    def _wait_for_golden(self, name: str, golden: int, pending: Pending) -> Iterator[None]:
        progress = self._canary.count_requests(name)
        asked_s = self._clock.look()
        while True:
            try:
                answer = pending.answer()
            except QueueFull:
                return  # busy is alive
            except NoGolden as error:
                raise Died(str(error)) from error
            if answer is not None:
                verdict = self._canary.compare(name, answer, golden)
                if not verdict.passed:
                    raise ServeError(f"{name} no longer draws its golden {golden}: {verdict}")
                return
            if self._clock.look() - asked_s > self._limits.canary_s:
                # A long queue is no death, nor is a long batch: while others are answered or one
                # is at work (for how long, is seen by its heartbeat), the turn will come.
                now = self._canary.count_requests(name)
                if now == progress and not self._vitals.is_running(name):
                    raise Died(f"{name} answered nobody for {self._limits.canary_s:g} s")
                progress, asked_s = now, self._clock.look()
            yield


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
