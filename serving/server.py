"""The life of a served repository: verify, start, watch, restart, drain.

Triton 2.51 stays "ready" when the process that runs its models is dead, does not always end on
SIGTERM, and leaves processes and shared memory behind when it is killed; this supervisor owns all
of that. It runs in the main thread of ``latentry serve``.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from latentry.serving.canary import Canary, NoGolden, Pending, QueueFull
from latentry.serving.errors import EntryError, ServeError
from latentry.serving.manifest import ServingPart
from latentry.serving.repository import (
    Entry,
    list_strays,
    newest_entries,
    verify_entry,
    with_serving,
)
from latentry.serving.server_folder import (
    ServerFolder,
    create_server_folder,
    sweep_server_folders,
)
from latentry.serving.tritonserver import (
    Endpoint,
    Installation,
    find_tritonserver,
    lay_out_backends,
    remove_stub_folders,
    server_command,
    server_environment,
    start_tritonserver,
)

_LOGGER = logging.getLogger(__name__)

_TICK_S = 0.1
_LOOPBACK = ("127.0.0.1", "localhost")
_MOST_RESTARTS, _RESTART_WINDOW_S = 5, 60.0
_BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
_CANARY_EVERY_S = 5.0
_CANARY_SHARE = 0.01  # of the engine's time, at most
_LAST_LINES = 20


@dataclass(frozen=True)
class ServeOptions:
    """What ``latentry serve`` was asked for.

    Attributes:
        repository: The model repository.
        models: Names to serve; empty means all.
        address: Address to listen on.
        port: gRPC port; 0 takes a free one. Likewise ``metrics_port``.
        instances: Copies of each model's process; None leaves it to the manifest.
        threads: Engine threads of each copy; None leaves it to the manifest.
        max_batch_size: Largest batch; None leaves it to the manifest, which no value may exceed
            beyond what the export proved.
        max_queue_delay_microseconds: How long a batch waits for more requests; None leaves it to
            the manifest.
        max_queue_size: Requests that may wait before others are refused as busy, 0 for any number;
            None leaves it to the manifest.
        log_level: One of error, warning, info, debug.
        log_file: Where Triton's output goes; None keeps it in the private folder.
        start_s: Longest time until ready.
        canary_s: Longest time for an answer to the canary, in a queue of requests too.
        drain_s: Longest time for running requests after the signal to stop.
        expose_old_server: Whether the wheel's old server may listen beyond loopback.
    """

    repository: Path
    models: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int = 8002
    instances: int | None = None
    threads: int | None = None
    max_batch_size: int | None = None
    max_queue_delay_microseconds: int | None = None
    max_queue_size: int | None = None
    log_level: str = "warning"
    log_file: Path | None = None
    start_s: float = 60.0
    canary_s: float = 30.0
    drain_s: float = 10.0
    expose_old_server: bool = False


class _Died(Exception):
    """The server must be started again; the text says why."""


def serve(options: ServeOptions, on_ready: Callable[[Endpoint, list[Entry]], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; ``on_ready`` is called at every start.

    Raises:
        ServeError: It could not be started, failed the canary, or died too often.
        EntryError: An entry is damaged; all of them are listed.
        BadRequest: An option is not allowed, or is beyond what an entry's export proved.
        NotFound: A model is not in the repository.
        KeyboardInterrupt: It was ended by SIGINT, after everything was cleaned up.
    """
    installation = find_tritonserver()
    _check_exposure(options, installation)
    entries = _verified_entries(options)
    for server_id in sweep_server_folders():
        _LOGGER.warning("cleaned up after server %s, which was killed", server_id)
    endpoint = _take_ports(options)
    with _Signals() as signals, create_server_folder(entries) as folder:
        _Supervisor(options, installation, endpoint, folder, entries, signals).run(on_ready)
    if signals.interrupted:
        raise KeyboardInterrupt


def _verified_entries(options: ServeOptions) -> list[Entry]:
    entries = newest_entries(options.repository, options.models)
    for stray in list_strays(options.repository):
        if stray.is_dir():
            _LOGGER.warning("%s is no entry (it has no latentry.json) and is not served", stray)
    problems = []
    for entry in entries:
        try:
            verify_entry(entry)
        except EntryError as error:
            problems.append(str(error))
    if problems:
        raise EntryError("\n".join(problems))
    return [_with_options(entry, options) for entry in entries]


def _with_options(entry: Entry, options: ServeOptions) -> Entry:
    names = ServingPart.model_fields
    chosen = {name: getattr(options, name) for name in names}
    return with_serving(entry, {key: value for key, value in chosen.items() if value is not None})


def _check_exposure(options: ServeOptions, installation: Installation) -> None:
    if ":" in options.address:
        raise ServeError(
            f"{options.address}: give an IPv4 address or a host name, such as 127.0.0.1"
        )
    if installation.wheel and options.address not in _LOOPBACK and not options.expose_old_server:
        raise ServeError(
            f"{options.address} can be reached from outside, and the Triton 2.51 in the "
            "nvidia-pytriton wheel has known holes; use the vendor's container (26.07 or later) "
            "behind a proxy, or say --expose-old-server"
        )


def _take_ports(options: ServeOptions) -> Endpoint:
    # Both are held until both are known, so that two free ones are not the same one.
    with (
        _bound(options.address, options.port, "--port") as port,
        _bound("127.0.0.1", options.metrics_port, "--metrics-port") as metrics_port,
    ):
        return Endpoint(options.address, port, metrics_port)


@contextlib.contextmanager
def _bound(address: str, port: int, option: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except OSError as error:
            raise ServeError(
                f"port {port} on {address} cannot be used ({error.strerror}); stop what listens "
                f"there or give another with {option} (0 takes a free one)"
            ) from error
        yield int(probe.getsockname()[1])


class _Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into a count that the supervisor looks at."""

    def __init__(self) -> None:
        self.stops = 0
        self.interrupted = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave before

    def _count(self, number: int, _: object) -> None:
        self.stops += 1
        self.interrupted |= number == signal.SIGINT


class _Supervisor:
    """Keeps one Triton alive."""

    def __init__(
        self,
        options: ServeOptions,
        installation: Installation,
        endpoint: Endpoint,
        folder: ServerFolder,
        entries: list[Entry],
        signals: _Signals,
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self._folder = folder
        self._entries = entries
        self._signals = signals
        self._log_file = options.log_file or folder.log_file
        self._command = server_command(
            installation,
            endpoint,
            repository=folder.repository,
            backend_flags=lay_out_backends(installation, folder.backends),
            shm_prefix=folder.shm_prefix,
            log_level=options.log_level,
            drain_s=options.drain_s,
        )
        self._environment = server_environment(installation, folder.server_id)
        self._deaths: deque[float] = deque(maxlen=_MOST_RESTARTS)
        self._failed_starts = 0
        self._processes = sum(entry.manifest.serving.instances for entry in entries) + 1

    def run(self, on_ready: Callable[[Endpoint, list[Entry]], None]) -> None:
        """Start and watch until told to stop."""
        while not self._signals.stops:
            try:
                with self._server() as process, self._canary() as canary:
                    self._wait_until_ready(process, canary)
                    if self._signals.stops:
                        break
                    self._failed_starts = 0
                    # Who reads the ready line may have gone; that is no reason to stop serving.
                    with contextlib.suppress(OSError, SystemExit):
                        on_ready(self._endpoint, self._entries)
                    self._watch(process, canary)
                    self._drain(process)
            except _Died as death:
                self._back_off(str(death))

    @contextlib.contextmanager
    def _server(self) -> Iterator["subprocess.Popen[bytes]"]:
        start = time.time()
        process = start_tritonserver(self._command, self._environment, self._log_file)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._folder.kill_leftovers()
            remove_stub_folders(start)

    @contextlib.contextmanager
    def _canary(self) -> Iterator[Canary]:
        canary = Canary(self._endpoint.url, self._entries)
        try:
            yield canary
        finally:
            canary.close()

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", canary: Canary) -> None:
        deadline = time.monotonic() + self._options.start_s
        while not canary.server_ready():
            if self._signals.stops:
                return
            if process.poll() is not None and not self._deaths:
                raise ServeError(f"tritonserver did not start:\n{self._last_lines()}")
            self._check_alive(process)
            if time.monotonic() > deadline:
                raise _Died(f"it was not ready within {self._options.start_s:g} s")
            time.sleep(_TICK_S)
        try:
            warnings = canary.check_all(self._options.canary_s)
        except NoGolden as error:
            raise _Died(str(error)) from error
        for warning in warnings:
            _LOGGER.warning("%s", warning)

    def _watch(self, process: "subprocess.Popen[bytes]", canary: Canary) -> None:
        """Return when told to stop; raise _Died when the server is not what it should be."""
        stubs = _stubs(process)
        if len(stubs) < self._processes:
            raise _Died("a model process is missing")
        rounds = self._canary_rounds(canary)
        while not self._signals.stops:
            self._check_alive(process)
            if _any_ended(stubs):
                raise _Died("a model process died")
            next(rounds)
            time.sleep(_TICK_S)

    def _canary_rounds(self, canary: Canary) -> Iterator[None]:
        """Ask for one golden after the other, never waiting; one step at each tick."""
        pause_s = _CANARY_EVERY_S
        for turn in itertools.count():
            yield from _wait(pause_s)
            entry = self._entries[turn % len(self._entries)]
            golden = turn // len(self._entries) % len(entry.manifest.record.goldens.seeds)
            asked = time.monotonic()
            pending = canary.ask(entry.name, golden)
            yield from self._wait_for_golden(canary, entry.name, golden, pending)
            pause_s = max(_CANARY_EVERY_S, (time.monotonic() - asked) / _CANARY_SHARE)

    def _wait_for_golden(
        self, canary: Canary, name: str, golden: int, pending: Pending
    ) -> Iterator[None]:
        progress = canary.count_requests(name)
        deadline = time.monotonic() + self._options.canary_s
        while True:
            try:
                image = pending.wait(0)
            except QueueFull:
                return  # busy is alive
            except NoGolden as error:
                raise _Died(str(error)) from error
            if image is not None:
                verdict = canary.compare(name, image, golden)
                if not verdict.passed:
                    raise ServeError(f"{name} no longer draws its golden {golden}: {verdict}")
                return
            if time.monotonic() > deadline:
                # A long queue is no death: as long as others are answered, the turn will come.
                if (now := canary.count_requests(name)) == progress:
                    raise _Died(f"{name} answered nobody for {self._options.canary_s:g} s")
                progress, deadline = now, time.monotonic() + self._options.canary_s
            yield

    def _check_alive(self, process: "subprocess.Popen[bytes]") -> None:
        if (code := process.poll()) is not None:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise _Died(f"tritonserver ended with {how}")

    def _drain(self, process: "subprocess.Popen[bytes]") -> None:
        """Let running requests finish; a second signal, or the time, ends the patience."""
        with contextlib.suppress(_Died):
            stubs = _stubs(process)
            process.terminate()
            self._wait_for_end(process, stubs)

    def _wait_for_end(
        self, process: "subprocess.Popen[bytes]", stubs: list[psutil.Process]
    ) -> None:
        deadline = time.monotonic() + self._options.drain_s
        while time.monotonic() < deadline and self._signals.stops < 2:
            # Triton lets its model processes go when no request is left, and then takes seconds
            # to end; nothing is lost by not waiting for that.
            if process.poll() is not None or _any_ended(stubs):
                return
            time.sleep(_TICK_S)

    def _back_off(self, why: str) -> None:
        now = time.monotonic()
        self._failed_starts += 1
        often = len(self._deaths) == _MOST_RESTARTS and now - self._deaths[0] < _RESTART_WINDOW_S
        if often or self._failed_starts > _MOST_RESTARTS:
            when = f"within {_RESTART_WINDOW_S:g} s" if often else "without ever being ready"
            raise ServeError(
                f"{why}; that was restart {_MOST_RESTARTS} {when}, giving up. "
                f"Its last lines:\n{self._last_lines()}"
            )
        recent = [death for death in self._deaths if now - death < _RESTART_WINDOW_S]
        self._deaths.append(now)
        _LOGGER.warning("%s; starting it again", why)
        for _ in _wait(_BACK_OFF_S[min(len(recent), len(_BACK_OFF_S) - 1)]):
            if self._signals.stops:
                return
            time.sleep(_TICK_S)

    def _last_lines(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:]) or "(it printed nothing)"


def _stubs(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the processes that run the models."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess as error:
        raise _Died("tritonserver ended") from error


def _any_ended(processes: list[psutil.Process]) -> bool:
    for process in processes:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
    return False


def _wait(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
