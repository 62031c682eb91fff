"""What a server runs with, and what its processes use of the machine, seen from beside it."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentry.clients.transports.channel import host_from_url
from latentry.contract.system import is_loopback

_EVERY_S = 0.2


@dataclass
class Watched:
    """What was seen of a server's processes while a block ran.

    Attributes:
        memory_mib: Their memory at the end, shared pages counted once (PSS); None where they
            cannot be seen.
        times_s: Seconds since the epoch at which processor time was read.
        cpu_s: Processor seconds used until then.
    """

    memory_mib: float | None = None
    times_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def cores(self, begin_s: float, end_s: float) -> float | None:
        """Return the processor cores used between two moments; None where nothing was seen."""
        if len(self.times_s) < 2:
            return None
        used = np.interp([begin_s, end_s], self.times_s, self.cpu_s)
        return float((used[1] - used[0]) / (end_s - begin_s))


class ServerUsage:
    """Processor time and memory of the process that listens at an address, and its children."""

    def __init__(self, url: str) -> None:
        """Look for the processes: those of a remote server, or of somebody else, are not seen."""
        process = _listening_process(url)
        self._family = [process, *process.children(recursive=True)] if process else []

    @contextmanager
    def watch(self) -> Iterator[Watched]:
        """Read processor time every 0.2 s while the block runs, and memory at its end."""
        watched, stop = Watched(), threading.Event()

        def read() -> None:
            while self._read_cpu(watched) and not stop.wait(_EVERY_S):
                pass
            self._read_cpu(watched)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield watched
        finally:
            stop.set()
            reader.join()
            watched.memory_mib = self._memory_mib()

    def _read_cpu(self, watched: Watched) -> bool:
        import psutil

        try:
            times = [process.cpu_times() for process in self._family]
        except psutil.Error:
            return False
        if times:
            watched.times_s.append(time.time())
            watched.cpu_s.append(sum(item.user + item.system for item in times))
        return bool(times)

    def _memory_mib(self) -> float | None:
        import psutil

        try:
            sizes = [process.memory_full_info().pss for process in self._family]
        except psutil.Error:
            return None
        return sum(sizes) / 2**20 if sizes else None


def served_configuration(url: str, model: str) -> dict[str, int]:
    """Return the fields of a build's ``serving`` part as the server at ``url`` runs them.

    Raises:
        LatentryError: There is no such model, or no answer.
    """
    from latentry.clients.transports.grpc_transport import GrpcTransport
    from latentry.contract.wire import THREADS

    with closing(GrpcTransport(url)) as transport:
        config = transport.model_config(model)
    batching = config.dynamic_batching
    return {
        "max_batch_size": config.max_batch_size,
        "max_queue_delay_microseconds": batching.max_queue_delay_microseconds,
        "max_queue_size": batching.default_queue_policy.max_queue_size,
        "instances": sum(group.count for group in config.instance_group),
        "threads": int(config.parameters[THREADS].string_value or 0),
    }


def _listening_process(url: str) -> Any:
    import psutil

    if not is_loopback(host_from_url(url)):
        return None
    port = url.rpartition(":")[2]
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and getattr(
                connection.laddr, "port", None
            ) == int(port):
                return psutil.Process(connection.pid) if connection.pid else None
    except psutil.Error:
        pass  # not ours to look at
    return None
