"""Ctrl-C while a worker is being started."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator

import pytest

from latentry.synthesis.crews.processes import start_worker


@pytest.fixture(autouse=True)
def own_ctrl_c() -> Iterator[None]:
    """End the workers of a test, and leave Ctrl-C as it was."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


class Interrupting:
    """Ctrl-C comes, to a thread that does not mask it, while this is written for the worker."""

    def __init__(self) -> None:
        self.whole = False
        self._now = threading.Event()
        self._thread = threading.Thread(target=self._interrupt, daemon=True)
        self._thread.start()

    def _interrupt(self) -> None:
        self._now.wait()
        signal.raise_signal(signal.SIGINT)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self._now.set()
        self._thread.join()
        self.whole = True
        return object, ()


def test_the_worker_is_told_everything_before() -> None:
    argument = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        start_worker(print, argument)
    assert argument.whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_start_workers_too() -> None:
    codes = []

    def work() -> None:
        # The thread stays: a worker dies with the one that forked it.
        process, connection = start_worker(print)
        process.join(60)
        codes.append(process.exitcode)
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0]
