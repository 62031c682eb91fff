"""``latentry serve``: verify everything, take the ports, keep a Triton alive until told to stop."""

import contextlib
import errno
import logging
import resource
import signal
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentry.contract.errors import EntryError, NotFound, ServeError, listed
from latentry.contract.system import is_loopback
from latentry.serving.entries.manifests import ServingPart
from latentry.serving.entries.repository import (
    Entry,
    list_strays,
    newest_entries,
)
from latentry.serving.entries.tuning import with_serving
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines.choosing import runnable
from latentry.serving.server.folder import (
    check_starts_programs,
    create_server_folder,
    sweep_server_folders,
)
from latentry.serving.server.life import Limits
from latentry.serving.server.supervisor import OnReady, Supervisor
from latentry.serving.triton.tritonserver import Endpoint, Installation, find_tritonserver

_LOGGER = logging.getLogger(__name__)

# Under less Triton hangs as it starts, or dies by a signal, and names no cause.
_LIMITS = (
    (resource.RLIMIT_NOFILE, 256, "only {} files may be open; raise that (ulimit -n 1024)"),
    (
        resource.RLIMIT_AS,
        8 * 2**30,
        "a process may have no more than {} bytes of addresses, and tritonserver takes gigabytes, "
        "used or not; lift that (ulimit -v unlimited)",
    ),
)


@dataclass(frozen=True)
class ServeOptions:
    """What ``latentry serve`` was asked for.

    Attributes:
        repository: The model repository.
        models: Names to serve; empty means all.
        builds: The build of each model that is not to be served by its default one.
        streams: Names of those that are streamed, too; None means all.
        address: Address to listen on.
        port: gRPC port; 0 takes a free one. Likewise ``metrics_port``.
        instances: Copies of each model's process; None leaves it to the build.
        threads: Engine threads of each copy; None leaves it to the build.
        max_batch_size: Largest batch; None leaves it to the build, which no value may exceed
            beyond what the export proved.
        max_queue_delay_microseconds: How long a batch waits for more requests; None leaves it to
            the build.
        max_queue_size: Requests that may wait before others are refused as busy, 0 for any number;
            None leaves it to the build.
        log_level: One of error, warning, info, debug.
        log_file: Where Triton's output goes; None keeps it in the private folder.
        limits: How long things may take.
        most_memory: Bytes above which the server is drained and started again; None for
            :func:`latentry.serving.server.memory.default_limit`.
        expose_old_server: Whether the wheel's old server may listen beyond loopback.
    """

    repository: Path
    models: tuple[str, ...] = ()
    builds: Mapping[str, str] = field(default_factory=dict)
    streams: tuple[str, ...] | None = None
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
    limits: Limits = Limits()
    most_memory: int | None = None
    expose_old_server: bool = False


def serve(options: ServeOptions, on_ready: OnReady) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; ``on_ready`` is called at every start.

    SIGHUP is left alone where it is ignored already, as under nohup.

    Raises:
        ServeError: It could not be started, failed the canary, or died too often.
        EntryError: An entry is damaged; all of them are listed.
        BadRequest: An option is not allowed, or is beyond what an entry's export proved.
        NotFound: A model is not in the repository.
        KeyboardInterrupt: It was ended by SIGINT, after everything was cleaned up.
    """
    installation = find_tritonserver()
    _warn_of_limits()
    options = replace(options, address=_host(options.address))
    _check_exposure(options, installation)
    if installation.wheel is not None:
        check_starts_programs()
    entries = _verified_entries(options)
    for server_id in sweep_server_folders():
        _LOGGER.warning("cleaned up after server %s, which was killed", server_id)
    with (
        _ports(options) as endpoint,
        _Signals() as signals,
        create_server_folder() as folder,
    ):
        Supervisor(
            *(installation, endpoint, folder, entries, signals, options.limits),
            streams=_streams(options, entries),
            most_memory=options.most_memory,
            log_level=options.log_level,
            log_file=options.log_file,
        ).run(on_ready)
    if signals.interrupted:
        raise KeyboardInterrupt


def _warn_of_limits() -> None:
    for limit, least, text in _LIMITS:
        most = resource.getrlimit(limit)[0]
        if 0 <= most < least:  # RLIM_INFINITY is -1
            _LOGGER.warning("%s", text.format(f"{most:,}"))


def _streams(options: ServeOptions, entries: list[Entry]) -> frozenset[str]:
    """Return the names of the models that get a stream model; raises NotFound."""
    names = frozenset(entry.name for entry in entries)
    if options.streams is None:
        return names
    if missing := sorted(set(options.streams) - names):
        raise NotFound(
            f"--streams names {', '.join(missing)}; served are {', '.join(sorted(names))}"
        )
    return frozenset(options.streams)


def _verified_entries(options: ServeOptions) -> list[Entry]:
    newest = newest_entries(options.repository, options.models, options.builds)
    for stray in list_strays(options.repository):
        if stray.is_dir():
            _LOGGER.warning("%s is no entry (it has no model.json) and is not served", stray)
    if missing := sorted(options.builds.keys() - {entry.name for entry in newest}):
        raise NotFound(
            f"--build names {listed(missing)}; served are {listed(e.name for e in newest)}"
        )
    entries = [runnable(entry, is_asked=entry.name in options.builds) for entry in newest]
    problems = []
    for entry in entries:
        try:
            verify_entry(entry)
        except EntryError as error:
            problems.append(str(error))
    if problems:
        raise EntryError(listed(problems, "\n"))
    return [_with_options(entry, options) for entry in entries]


def _with_options(entry: Entry, options: ServeOptions) -> Entry:
    names = ServingPart.model_fields
    chosen = {name: getattr(options, name) for name in names}
    return with_serving(entry, {key: value for key, value in chosen.items() if value is not None})


def _check_exposure(options: ServeOptions, installation: Installation) -> None:
    address = options.address
    if installation.wheel and not is_loopback(address) and not options.expose_old_server:
        raise ServeError(
            f"{address} can be reached from outside, and the Triton 2.51 in the "
            "nvidia-pytriton wheel has known holes; use the vendor's container (26.07 or later) "
            "behind a proxy, or say --expose-old-server"
        )


def _host(address: str) -> str:
    """Return ``--address`` as sockets take it: an IPv6 address without brackets.

    Raises:
        ServeError: There is no such address.
    """
    host = address.removeprefix("[").removesuffix("]")
    try:
        socket.getaddrinfo(host, 0)
    except (OSError, UnicodeError) as error:
        raise ServeError(
            f"--address {address} is no address; give one without a port, such as 127.0.0.1 or ::1"
        ) from error
    return host


@contextlib.contextmanager
def _ports(options: ServeOptions) -> Iterator[Endpoint]:
    """Hold the two ports, so that no other program is given one, between two starts neither.

    Triton may listen on them all the same.
    """
    if options.port == options.metrics_port != 0:
        raise ServeError(
            f"port {options.port} cannot be used for requests and for metrics; give another with "
            "--metrics-port (0 takes a free one)"
        )
    with (
        _bound(options.address, options.port, "--port") as port,
        _bound("127.0.0.1", options.metrics_port, "--metrics-port") as metrics_port,
    ):
        yield Endpoint(options.address, port, metrics_port)


@contextlib.contextmanager
def _bound(address: str, port: int, option: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as held, socket.socket(family) as probe:
        try:
            for taken in (held, probe):
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind((address, port))
                port = int(taken.getsockname()[1])
            probe.listen()  # fails where somebody else does; Triton could not, while this one does
            probe.close()
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ServeError(f"{address} is no address of this machine") from error
            raise ServeError(
                f"port {port} on {address} cannot be used ({error.strerror}); stop what listens "
                f"there or give another with {option} (0 takes a free one)"
            ) from error
        yield port


class _Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into a count that the supervisor looks at."""

    def __init__(self) -> None:
        self.stops = 0
        self.interrupted = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: to go on when the terminal is closed
            self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave before

    def _count(self, number: int, _: object) -> None:
        self.stops += 1
        self.interrupted |= number == signal.SIGINT
