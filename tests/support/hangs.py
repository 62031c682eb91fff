"""Ways in which a part of a running server can hang, and how to wait until it is mended."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from misbehaving_models import BLOCK_THE_LOOP, DEADLOCK, ENDLESS, KEEP_THE_GIL
from running_server import RunningServer, wait_until

from latentry.clients import Client, LatentryError


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def _ask(server: RunningServer, seed: int) -> None:
    with Client(server.url) as client:
        client.info("wide")  # on a busy machine a second may pass before anything is asked
        try:
            client.generate("wide", seeds=seed, timeout_s=1)
        except LatentryError:
            return
    raise AssertionError(f"seed {seed} was answered")


def _stream(server: RunningServer) -> None:
    def ask() -> None:
        with Client(server.url) as client:
            try:
                list(client.stream("wide", seeds=range(9), chunk_size=BLOCK_THE_LOOP))
            except LatentryError:
                return

    threading.Thread(target=ask, daemon=True).start()


HANGS: dict[str, Callable[[RunningServer], None]] = {
    "stopped stub": lambda server: _stop(server.stub_pids_of("wide")[0]),
    "stopped stream": lambda server: _stop(server.stub_pids_of("wide.stream")[0]),
    "stopped tritonserver": lambda server: _stop(server.triton_pid()),
    "kept GIL": lambda server: _ask(server, KEEP_THE_GIL),
    "deadlock": lambda server: _ask(server, DEADLOCK),
    "endless loop": lambda server: _ask(server, ENDLESS),
    "blocked event loop": _stream,
}


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Let four callers ask, whatever becomes of their requests."""
    stop = threading.Event()

    def ask() -> None:
        with Client(server.url, timeout_s=5) as client:
            while not stop.is_set():
                try:
                    client.generate("wide", seeds=range(4))
                except LatentryError:
                    stop.wait(0.1)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()


def seconds_until_mended(server: RunningServer, hang: str, timeout_s: float) -> float:
    """Let something hang; return the seconds until its tritonserver was replaced.

    Returns when the new one is ready.
    """
    triton = psutil.Process(server.triton_pid())
    HANGS[hang](server)
    seconds = wait_until(lambda: _is_gone(triton), timeout_s)
    with Client(server.url) as client:
        wait_until(client.health, 120)
    return seconds


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
