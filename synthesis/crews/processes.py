"""Worker processes for a job: each makes one shard at a time and may die without harm."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from latentry.contract.errors import JobError
from latentry.contract.system import dying_with_parent
from latentry.synthesis.shard_making import Progress, Settled, ShardMaker, Work

_MOST_DEATHS = 3
_LAST_WORDS_S = 2.0
# Spawned, not forked: a process that has started gRPC or ONNX Runtime cannot be forked safely.
_SPAWN = multiprocessing.get_context("spawn")


class ProcessCrew:
    """Makes shards in processes of their own; a ``Crew``.

    A worker that dies is replaced, and its shard is made again. The workers end with this process,
    however it ends.
    """

    def __init__(self, count: int, *, pinned: bool) -> None:
        """Plan for ``count`` processes, each ``pinned`` to one of this process's cores or not."""
        self._count = count
        self._cores = sorted(os.sched_getaffinity(0)) if pinned else []

    def __call__(self, work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        """Settle the shards ``numbers``; yield what they are as they are done.

        Raises:
            JobError: Workers keep dying over the same shard.
            LatentryError: What a worker raised; the others are stopped.
        """
        shards = _Shards(numbers, self._count)
        workers: list[_Worker] = []
        try:
            while self._feed(workers, shards, work):
                busy = {worker.connection: worker for worker in workers if worker.shard is not None}
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]  # wait gives what it got
                    try:
                        settled = worker.take(progress)
                    except EOFError:
                        workers.remove(worker)
                        progress(-worker.drawn)
                        shards.lost(worker.shard or 0, worker.stop(_LAST_WORDS_S))
                    else:
                        if settled:
                            yield settled
        finally:
            for worker in workers:
                worker.stop()

    def _feed(self, workers: list["_Worker"], shards: "_Shards", work: Work) -> bool:
        """Give idle and new workers something to do; return whether anybody has."""
        idle = sum(worker.shard is None for worker in workers)
        for _ in range(min(self._count - len(workers), len(shards.waiting()) - idle)):
            workers.append(_Worker(work, self._core(workers)))
        for worker in workers:
            if worker.shard is None and shards.waiting():
                worker.give(shards.take())
        return any(worker.shard is not None for worker in workers)

    def _core(self, workers: list["_Worker"]) -> int | None:
        """Return the first core that the fewest of ``workers`` have."""
        taken = Counter(worker.core for worker in workers)
        return min(self._cores, key=lambda core: taken[core], default=None)


class _Shards:
    """The shards that nobody makes yet; few are looked at ahead."""

    def __init__(self, numbers: Iterable[int], ahead: int) -> None:
        self._numbers = iter(numbers)
        self._ahead = ahead
        self._waiting: deque[int] = deque()
        self._deaths: Counter[int] = Counter()

    def waiting(self) -> Sequence[int]:
        """Return the next ones."""
        room = max(0, self._ahead - len(self._waiting))
        self._waiting.extend(itertools.islice(self._numbers, room))
        return self._waiting

    def take(self) -> int:
        """Return the next one; somebody makes it now."""
        return self._waiting.popleft()

    def lost(self, number: int, exit_code: int | None) -> None:
        """Put back the shard that a dead worker was making.

        Raises:
            JobError: It was the last of too many.
        """
        self._deaths[number] += 1
        if self._deaths[number] == _MOST_DEATHS:
            raise JobError(
                f"{_MOST_DEATHS} workers died while they made shard {number}, the last with "
                f"{_cause(exit_code)}; when memory is short, use fewer --workers or a smaller "
                "shard_size"
            )
        self._waiting.appendleft(number)


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class _Worker:
    """One process, and what it is making."""

    def __init__(self, work: Work, core: int | None) -> None:
        self.core = core
        self.shard: int | None = None
        self.drawn = 0
        self._process, self.connection = start_worker(_make_shards, work, core)

    def give(self, number: int) -> None:
        """Tell the process to make a shard; where it is dead, :meth:`take` will say so."""
        self.shard, self.drawn = number, 0
        with contextlib.suppress(OSError):
            self.connection.send(number)

    def take(self, progress: Progress) -> Settled | None:
        """Return what the process has made; None when it only told of progress.

        Raises:
            EOFError: It is dead.
        """
        try:
            message = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Settled):
            self.shard = None
            return message
        self.drawn += message
        progress(message)
        return None

    def stop(self, patience_s: float = 0.0) -> int | None:
        """End the process and return its exit code; wait so long for it to end by itself."""
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()
        self.connection.close()
        return self._process.exitcode


def start_worker(
    target: Callable[..., None], *arguments: object
) -> "tuple[BaseProcess, Connection[Any, Any]]":
    """Run ``target(connection, *arguments)`` in a process that ends with this one.

    What it raises comes as a message; Ctrl-C is this process's to handle. All goes through a pipe:
    a pool's semaphores stay in shared memory when its processes are killed all at once.

    Returns:
        The process, and this end of the connection.
    """
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(
        target=_run_worker, args=(target, theirs, os.getpid(), *arguments), daemon=True
    )
    with _interrupted_later():
        # Ctrl-C is ignored from the worker's first moment on; the tracker, which the first of them
        # starts, takes the mask away.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return process, ours


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended: a process told half of its work shows a traceback.

    A mask does not do it, because any other thread of this process may be given the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C comes out of the main thread
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _run_worker(
    target: Callable[..., None],
    connection: "Connection[Any, Any]",
    parent: int,
    *arguments: object,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(parent)
    try:
        target(connection, *arguments)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        error.add_note(traceback.format_exc())
        connection.send(error)


def _make_shards(connection: "Connection[Any, Any]", work: Work, core: int | None) -> None:
    """Run in a worker: settle each shard that is asked for."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with ShardMaker(work) as maker:
        while True:
            number = connection.recv()
            connection.send(maker.settle(number, connection.send))


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        dying_with_parent(signal.SIGKILL)()
    if os.getppid() != parent:  # it was gone before this was asked for
        os._exit(1)
