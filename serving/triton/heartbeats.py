"""Signs of life of a server's model processes: written by them, read by the supervisor.

Triton 2.51 notices neither a stopped process nor a call that does not return, and a canary cannot
see them either: a hung instance is sent nothing more, its neighbours answer. So each process keeps
one small file of its server's up to date, in shared memory, where no disk can keep it waiting; and
looks there for the mark that tells it to take nothing new.
"""

import asyncio
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from latentry.contract.files import read_regular

# Names the folder of these files, in the environment of every process of a server.
SIGNS_FOLDER = "LATENTRY_SIGNS_FOLDER"
HEARTBEATS = "heartbeats"
DRAIN_MARK = "draining"

BEAT_EVERY_S = 0.5
# For how long a stream counts as under way whose reader takes its time between two requests.
_NEXT_REQUEST_S = 10.0
_BEAT_BYTES = 512


@dataclass(frozen=True)
class Beat:
    """What one process says of itself; times are seconds of the machine's monotonic clock.

    Attributes:
        model: The model that it runs.
        process: Name of the model's instance.
        pid: Process number.
        number: Counts the beats.
        time_s: When this was written.
        ready: Whether the networks are loaded and warm.
        begun: Executes that were begun.
        ended: Executes that ended.
        started_s: When the newest execute began; 0 before the first.
        longest_s: The longest execute yet, the warming up among them.
        under_way: Requests that are being answered.
        cpu_s: Processor seconds used, without those for beats.
        draining: Whether the mark was seen: nothing new is taken any more.
    """

    model: str
    process: str
    pid: int
    number: int
    time_s: float
    ready: bool
    begun: int
    ended: int
    started_s: float
    longest_s: float
    under_way: int
    cpu_s: float
    draining: bool

    @property
    def running(self) -> bool:
        """Whether an execute is under way."""
        return self.begun > self.ended


class Heart:
    """Writes the beats of this process; with no supervisor of ours (a bare Triton), writes nothing.

    Executes are counted by one thread; requests on an event loop by that loop alone.
    """

    def __init__(self, model: str, process: str, *, every_s: float = BEAT_EVERY_S) -> None:
        """Begin to beat, from a thread.

        Args:
            model: The model that this process runs.
            process: Name of the model's instance.
            every_s: Seconds from beat to beat.
        """
        self._model, self._process = model, process
        self._every_s = every_s
        self._number = self._begun = self._ended = self._under_way = 0
        self._started_s = self._longest_s = self._own_cpu_s = 0.0
        self._ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._awaited: deque[asyncio.TimerHandle] = deque()
        self._folder = Path(os.environ.get(SIGNS_FOLDER, ""))
        self._file: int | None = None
        self._writing = threading.Lock()
        self._draining_since_s: float | None = None
        if SIGNS_FOLDER in os.environ:
            path = self._folder / HEARTBEATS / f"{process}.json"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._beat()
            threading.Thread(target=self._beat_from_thread, name="heart", daemon=True).start()

    @property
    def draining_for_s(self) -> float:
        """Seconds since the mark was seen that nothing new is taken any more; 0 before."""
        if self._draining_since_s is None:
            return 0.0
        return time.monotonic() - self._draining_since_s

    def say_ready(self) -> None:
        """Tell that this process answers from now on."""
        self._ready = True
        self._beat()  # at once: a process that is not ready may be silent for longer

    @contextmanager
    def execute(self, requests: int) -> Iterator[None]:
        """Count the block as one execute that answers so many requests."""
        start = self._started_s = time.monotonic()
        self._under_way = requests
        self._begun += 1
        try:
            yield
        finally:
            self._longest_s = max(self._longest_s, time.monotonic() - start)
            self._ended += 1
            self._under_way = 0

    def begin_request(self, *, continues: bool) -> None:
        """Count a request that is answered beside others, on the event loop.

        Args:
            continues: It goes on with a stream of which a request was counted before.
        """
        if continues and self._awaited:
            self._awaited.popleft().cancel()  # it was counted all the time
        else:
            self._under_way += 1

    def end_request(self, *, to_be_continued: bool) -> None:
        """Count the end of a request; one whose stream goes on is waited for, for a while."""
        if to_be_continued:
            loop = asyncio.get_running_loop()
            self._awaited.append(loop.call_later(_NEXT_REQUEST_S, self._stop_waiting))
        else:
            self._under_way -= 1

    def move_to_loop(self) -> None:
        """Beat from the running event loop from now on, so that a blocked loop falls silent."""
        if self._loop is None and self._file is not None:
            self._loop = asyncio.get_running_loop()
            self._beat_from_loop()

    def _stop_waiting(self) -> None:
        self._awaited.popleft()
        self._under_way -= 1

    def _beat_from_thread(self) -> None:
        while self._loop is None:
            self._own_cpu_s = time.thread_time()
            time.sleep(self._every_s)
            if self._loop is None:
                self._beat()

    def _beat_from_loop(self) -> None:
        self._beat()
        asyncio.get_running_loop().call_later(self._every_s, self._beat_from_loop)

    def _beat(self) -> None:
        if self._file is not None:
            with self._writing:
                self._write(self._file)

    def _write(self, file: int) -> None:
        if self._draining_since_s is None and (self._folder / DRAIN_MARK).exists():
            self._draining_since_s = time.monotonic()
        self._number += 1
        ended = self._ended  # before begun: an execute that ends meanwhile still counts as running
        beat = Beat(
            model=self._model,
            process=self._process,
            pid=os.getpid(),
            number=self._number,
            time_s=time.monotonic(),
            ready=self._ready,
            begun=self._begun,
            ended=ended,
            started_s=self._started_s,
            longest_s=self._longest_s,
            under_way=self._under_way,
            cpu_s=time.process_time() - self._own_cpu_s,
            draining=self._draining_since_s is not None,
        )
        text = json.dumps({**asdict(beat), "end": beat.number}).encode()
        # Of one size, over the same block: a full disk is no reason to fall silent.
        with suppress(OSError):
            os.pwrite(file, text.ljust(_BEAT_BYTES), 0)


def read_beats(folder: Path) -> list[Beat]:
    """Return the newest beat of every process of the server with this folder of signs.

    One that is just being written is left out.
    """
    found = (_read_beat(path) for path in sorted((folder / HEARTBEATS).glob("*.json")))
    return [beat for beat in found if beat]


def _read_beat(path: Path) -> Beat | None:
    try:
        fields = json.loads(read_regular(path, most=_BEAT_BYTES))
        if fields.pop("end") == fields["number"]:
            return Beat(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # half of it is of the beat before
    return None
