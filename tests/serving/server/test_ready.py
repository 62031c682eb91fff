"""What a start waits for, with processes that beat and draw nothing."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.entries.tuning import with_serving
from latentry.serving.server import life
from latentry.serving.server.folder import ServerFolder
from latentry.serving.server.life import Limits, ServerLife
from latentry.serving.server.memory import MemoryLimit
from latentry.serving.server.vitals import Died
from latentry.serving.triton.heartbeats import HEARTBEATS, Beat
from latentry.serving.triton.tritonserver import Endpoint

TICKS = 15  # several of them for each look at the beats


class ReadyProbe:
    """A tritonserver that says that all is ready, from the start."""

    ready = True

    def __init__(self, *_: object) -> None: ...

    def step(self) -> bool:
        return False

    def close(self) -> None: ...


class RightCanary(ReadyProbe):
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


def say_ready(signs: Path, pid: int) -> None:
    beat = Beat("m", f"m_{pid}", pid, 1, 0.0, True, 1, 1, 0.0, 0.1, 0, 0.0, False)
    text = json.dumps({**asdict(beat), "end": beat.number})
    (signs / HEARTBEATS / f"{pid}.json").write_text(text)


@pytest.fixture
def entry(repository: Path) -> Entry:
    (entry,) = newest_entries(repository, ("wide",))
    return with_serving(entry, {"instances": 2})  # and the process of streams


def wait_for(
    process: "subprocess.Popen[bytes]",
    entry: Entry,
    signs: Path,
    monkeypatch: pytest.MonkeyPatch,
    tick: Callable[[int], None],
) -> None:
    """Wait until it is ready; ``tick`` is called with the number of each tick."""
    (signs / HEARTBEATS).mkdir(parents=True)
    monkeypatch.setattr(ServerFolder, "signs", signs)
    monkeypatch.setattr(life, "Probe", ReadyProbe)
    monkeypatch.setattr(life, "Canary", RightCanary)
    ticks = iter(range(1, 10 * TICKS))

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        tick(next(ticks))

    monkeypatch.setattr(life, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    ServerLife(
        *(process, Endpoint("127.0.0.1", 1, 2), ServerFolder(signs.parent, "none"), [entry]),
        *(SimpleNamespace(stops=0), Limits(), MemoryLimit(None)),
    ).wait_until_ready()


def test_a_start_waits_for_every_process(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs, said = tmp_path / "signs", []

    def tick(number: int) -> None:
        if number % TICKS == 0:
            said.append(number)
            say_ready(signs, number)

    with server_with(3) as process:
        wait_for(process, entry, signs, monkeypatch, tick)
    assert said == [TICKS, 2 * TICKS, 3 * TICKS]


def test_a_process_that_died_as_it_got_ready_is_missed(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs = tmp_path / "signs"
    with server_with(2) as process, pytest.raises(Died, match="a model process is missing"):
        wait_for(process, entry, signs, monkeypatch, lambda number: say_ready(signs, number))
