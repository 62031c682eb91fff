"""Keeps one Triton alive: starts it, and starts it again whenever it died, hung or grew too large.

It runs in the main thread of ``latentry serve``; what one start goes through until its end is
:class:`latentry.serving.server.life.ServerLife`.
"""

import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from latentry.contract.errors import ServeError
from latentry.contract.files import last_lines
from latentry.serving.entries.repository import Entry
from latentry.serving.server.folder import ServerFolder, remove_stub_folders
from latentry.serving.server.life import TICK_S, Full, Limits, ServerLife, Signals
from latentry.serving.server.memory import MemoryLimit
from latentry.serving.server.vitals import Died
from latentry.serving.triton.tritonserver import (
    Endpoint,
    Installation,
    lay_out_backends,
    server_command,
    server_environment,
    start_tritonserver,
)

_LOGGER = logging.getLogger(__name__)

# Starts in a row that never became ready, before giving up; more where it once was ready, because
# then it is the world that kills it, and that may end.
_MOST_FAILED_STARTS, _MOST_FAILED_RESTARTS = 5, 20
_RESTART_WINDOW_S = 60.0
_BACK_OFF_S: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_LAST_LINES = 20

OnReady = Callable[[Endpoint, list[Entry]], None]


class Supervisor:
    """Keeps one Triton alive."""

    def __init__(
        self,
        installation: Installation,
        endpoint: Endpoint,
        folder: ServerFolder,
        entries: list[Entry],
        signals: Signals,
        limits: Limits,
        *,
        streams: Collection[str],
        most_memory: int | None,
        log_level: str,
        log_file: Path | None,
    ) -> None:
        self._installation = installation
        self._endpoint = endpoint
        self._folder = folder
        self._entries = entries
        self._signals = signals
        self._limits = limits
        self._streams = streams
        self._memory = MemoryLimit(most_memory)
        self._log_level = log_level
        self._log_file = log_file or folder.log_file
        self._deaths: deque[float] = deque(maxlen=len(_BACK_OFF_S))
        self._failed_starts = 0
        self._was_ready = False

    def run(self, on_ready: OnReady) -> None:
        """Start and watch until told to stop.

        Raises:
            ServeError: It does not start, draws something wrong, or takes more memory than it may
                from the start.
        """
        while not self._signals.stops:
            try:
                with self._life() as life:
                    life.wait_until_ready()
                    if self._signals.stops:
                        return
                    self._say_ready(on_ready)
                    self._watch_and_drain(life)
            except Died as death:
                self._back_off(death)
            except OSError as error:
                if not self._was_ready:
                    raise
                self._log_file = self._folder.log_file  # in case that it is the file of the user
                self._back_off(Died(f"it could not be started: {error}"))

    def _watch_and_drain(self, life: ServerLife) -> None:
        try:
            life.watch()
        except Full as full:
            _LOGGER.warning("%s; draining it and starting it again", full)
            life.drain(full=True)
        else:
            life.drain()

    @contextmanager
    def _life(self) -> Iterator[ServerLife]:
        # Made anew each time: a cleaner of temporary files may have taken some of it.
        entries = self._folder.fill(self._entries, self._streams)
        command = server_command(
            self._installation,
            self._endpoint,
            repository=self._folder.repository,
            backend_flags=lay_out_backends(self._installation, self._folder.backends),
            shm_prefix=self._folder.shm_prefix,
            log_level=self._log_level,
            drain_s=self._limits.drain_s,
        )
        environment = server_environment(
            self._installation, self._folder.server_id, self._folder.signs
        )
        start = time.time()
        process = start_tritonserver(command, environment, self._log_file)
        life = ServerLife(
            *(process, self._endpoint, self._folder, entries),
            *(self._signals, self._limits, self._memory, self._streams),
        )
        try:
            yield life
        finally:
            life.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._folder.kill_leftovers()
            remove_stub_folders(start)

    def _say_ready(self, on_ready: OnReady) -> None:
        self._failed_starts, self._was_ready = 0, True
        # Who reads the ready line may have gone; that is no reason to stop serving.
        with contextlib.suppress(OSError, SystemExit):
            on_ready(self._endpoint, self._entries)

    def _back_off(self, death: Died) -> None:
        self._failed_starts += 1
        most = _MOST_FAILED_RESTARTS if self._was_ready else _MOST_FAILED_STARTS
        # An exit code of its own at the very first start is a mistake that stays.
        final = death.exit_code is not None and death.exit_code >= 0 and not self._was_ready
        if final or self._failed_starts >= most:
            raise ServeError(
                f"{death}; it did not become ready {self._failed_starts} times in a row, giving "
                f"up. Its last lines:\n{self._last_lines()}"
            )
        now = time.monotonic()
        recent = [moment for moment in self._deaths if now - moment < _RESTART_WINDOW_S]
        self._deaths.append(now)
        pause_s = _BACK_OFF_S[min(len(recent), len(_BACK_OFF_S) - 1)]
        when = f" in {pause_s:g} s" if pause_s else ""
        _LOGGER.warning("%s; starting it again%s", death, when)
        while time.monotonic() < now + pause_s and not self._signals.stops:
            time.sleep(TICK_S)

    def _last_lines(self) -> str:
        return last_lines(self._log_file, _LAST_LINES) or "(it printed nothing)"
