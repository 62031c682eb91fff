"""What a life waits for and notices, with processes that beat and draw nothing."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from latentry.contract.errors import ServeError
from latentry.serving.entries.goldens import GoldenVerdict
from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.entries.tuning import with_serving
from latentry.serving.server import life
from latentry.serving.server.canary import NoGolden, Pending, QueueFull
from latentry.serving.server.folder import ServerFolder
from latentry.serving.server.life import Full, Limits, ServerLife
from latentry.serving.server.memory import MemoryLimit
from latentry.serving.server.vitals import Died, WatchClock
from latentry.serving.triton.heartbeats import HEARTBEATS, Beat
from latentry.serving.triton.tritonserver import Endpoint

TICKS = 15  # several of them for each look at the beats


class RightProbe:
    """A tritonserver that says that all is ready, from the start."""

    ready = True

    def __init__(self, *_: object) -> None: ...

    def step(self) -> bool:
        return False

    def close(self) -> None: ...


class RightCanary(RightProbe):
    """Goldens that are all drawn right."""

    def check_all(self, _: object) -> list[str]:
        return []


@contextmanager
def server_with(children: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a process with so many children."""
    code = "sleep 1000 & " * children + "echo; wait"
    with subprocess.Popen(["sh", "-c", code], stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def say_ready(
    signs: Path, pid: int, model: str = "m", *, number: int = 1, under_way: int = 0
) -> None:
    name = f"{model}_{pid}"
    beat = Beat(model, name, pid, number, 0.0, True, 1, 1, 0.0, 0.1, under_way, 0.0, False)
    text = json.dumps({**asdict(beat), "end": beat.number})
    (signs / HEARTBEATS / f"{pid}.json").write_text(text)


@pytest.fixture
def entry(repository: Path) -> Entry:
    (entry,) = newest_entries(repository, ("wide",))
    return with_serving(entry, {"instances": 2})  # and the process of its streams


def wait_for(
    process: "subprocess.Popen[bytes]",
    entry: Entry,
    signs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tick: Callable[[int], None],
    streams: Collection[str] = ("wide",),
) -> None:
    """Wait until it is ready; ``tick`` is called with the number of each tick."""
    (signs / HEARTBEATS).mkdir(parents=True)
    monkeypatch.setattr(life, "ReadinessProbe", RightProbe)
    monkeypatch.setattr(life, "Canary", RightCanary)
    ticks = iter(range(1, 10 * TICKS))

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        tick(next(ticks))

    monkeypatch.setattr(life, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    ServerLife(
        *(process, Endpoint("127.0.0.1", 1, 2), ServerFolder(signs.parent, "none", signs), [entry]),
        *(SimpleNamespace(stops=0), Limits(), MemoryLimit(None), streams),
    ).wait_until_ready()


@pytest.mark.parametrize("streams", [("wide",), ()])
def test_a_start_waits_for_every_process(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: tuple[str, ...]
) -> None:
    signs, said = tmp_path / "signs", []

    def tick(number: int) -> None:
        if number % TICKS == 0:
            said.append(number)
            say_ready(signs, number)

    processes = 2 + len(streams)
    with server_with(processes) as process:
        wait_for(process, entry, signs, monkeypatch, tick, streams)
    assert said == [TICKS * number for number in range(1, processes + 1)]


def test_a_process_that_died_as_it_got_ready_is_missed(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = tmp_path / "signs"
    with server_with(2) as process, pytest.raises(Died, match="a model process is missing"):
        wait_for(process, entry, signs, monkeypatch, lambda number: say_ready(signs, number))


class Asked(RightCanary):
    """Goldens that are answered as the test says."""

    answers: tuple[Exception | None, ...] = ()
    passes = True

    def __init__(self, *_: object) -> None:
        self._next = iter(self.answers)

    def count_requests(self, _: str) -> int:
        return 0

    def ask(self, *_: object) -> Pending:
        pending = Pending()
        pending.answer = self._answer  # type: ignore[method-assign]
        return pending

    def _answer(self, timeout_s: float = 0.0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if error := next(self._next, None):
            raise error
        return np.zeros((1, 1, 1, 1), np.uint8)

    def compare(self, *_: object) -> GoldenVerdict:
        return GoldenVerdict(self.passes, self.passes, "image", 0, 0, 0.0)


class Watched:
    """A life that is ready; its clock, and its processes' beats, go on by ticks alone."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        entry: Entry,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.now_s, self.ticks, self.stops, self.used = 0.0, 0, 0, 1_000
        self.stop_s = 30.0
        self.told_to_end_s: list[float] = []
        self.beating = {1: "m", 2: "m", 3: "m"}
        self.signs = folder / "signs"
        (self.signs / HEARTBEATS).mkdir(parents=True)
        clock = SimpleNamespace(sleep=self._sleep, monotonic=lambda: self.now_s)
        monkeypatch.setattr(life, "time", clock)
        monkeypatch.setattr(life, "WatchClock", lambda: WatchClock(lambda: self.now_s))
        monkeypatch.setattr(life, "ReadinessProbe", RightProbe)
        monkeypatch.setattr(life, "Canary", Asked)
        monkeypatch.setattr(life, "used_bytes", lambda *_: self.used)
        monkeypatch.setattr(process, "terminate", lambda: self.told_to_end_s.append(self.now_s))
        place = ServerFolder(folder, "none", self.signs)
        self.life = ServerLife(
            *(process, Endpoint("127.0.0.1", 1, 2), place, [entry], self),
            *(Limits(drain_s=12.0), MemoryLimit(2_000), ("m",)),
        )
        self.life.wait_until_ready()

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.ticks += 1
        self.stops |= self.now_s > self.stop_s
        for pid, model in self.beating.items():
            say_ready(self.signs, pid, model, number=self.ticks, under_way=int(model != "m"))


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    with server_with(3) as started:
        yield started


@pytest.fixture
def watched(
    process: "subprocess.Popen[bytes]",
    entry: Entry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Watched:
    return Watched(process, entry, tmp_path, monkeypatch)


def test_a_sound_server_is_watched_until_told_to_stop(watched: Watched) -> None:
    watched.life.watch()
    assert watched.now_s > watched.stop_s


def test_one_model_process_that_dies_is_noticed(
    watched: Watched, process: "subprocess.Popen[bytes]"
) -> None:
    psutil.Process(process.pid).children()[1].kill()
    with pytest.raises(Died, match="a model process died"):
        watched.life.watch()


def test_a_server_that_has_grown_is_full(watched: Watched) -> None:
    watched.used = 2 * 2**20
    with pytest.raises(Full, match="the server takes 2 MiB, more than 0 MiB"):
        watched.life.watch()


@pytest.mark.parametrize(
    ("answer", "passes", "kind", "words"),
    [
        (NoGolden("the canary got an error: unhealthy"), True, Died, "got an error: unhealthy"),
        (
            None,
            False,
            ServeError,
            "wide no longer draws its golden 1: image of golden 0 differs most",
        ),
    ],
)
def test_a_golden_that_is_not_drawn_right_is_noticed(
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    answer: Exception | None,
    passes: bool,
    kind: type[Exception],
    words: str,
) -> None:
    # Busy is alive.
    monkeypatch.setattr(watched.life._canary, "_next", iter([QueueFull("full"), answer]))
    monkeypatch.setattr(Asked, "passes", passes)
    with pytest.raises(kind, match=words):
        watched.life.watch()


def drained_s(watched: Watched, model: str = "m.stream", *, full: bool = False) -> float:
    """Return how long a request to ``model`` was waited for that does not end."""
    watched.beating[9] = model
    watched.stop_s = 6.0
    with suppress(Full):
        watched.life.watch()
    begun_s = watched.now_s
    watched.life.drain(full=full)
    (told_s,) = watched.told_to_end_s
    return told_s - begun_s


def test_streams_have_the_time_that_was_given(watched: Watched) -> None:
    assert drained_s(watched) == pytest.approx(12, abs=0.2)


def test_what_is_no_stream_is_waited_for_by_triton_itself(watched: Watched) -> None:
    assert drained_s(watched, "another") < 1


def test_a_full_server_is_drained_for_a_shorter_time(watched: Watched) -> None:
    watched.used = 2_500
    assert drained_s(watched, full=True) == pytest.approx(10, abs=0.2)


def test_a_full_server_that_grows_on_is_not_waited_for(watched: Watched) -> None:
    watched.used = 3_500
    assert drained_s(watched, full=True) < 9
