"""When a server is started again, and when it is given up: lives that end as they are told to."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentry.contract.errors import ServeError
from latentry.serving.server import supervisor
from latentry.serving.server.folder import ServerFolder
from latentry.serving.server.life import Full, Limits
from latentry.serving.server.supervisor import OnReady, Supervisor
from latentry.serving.server.vitals import Died
from latentry.serving.triton.tritonserver import Endpoint, Installation


class World:
    """A clock that goes on by sleep alone, a stop signal, and what becomes of each life.

    An error ends a life before it is ready; one in a tuple ends it while it is watched.
    """

    def __init__(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.stops, self.stop_s = 0.0, 0, math.inf
        self.begun_s: list[float] = []
        self.drained_full: list[bool] = []
        self.ends: Iterator[Exception | tuple[Exception]] = iter(())
        self.folder = ServerFolder(log.parent, "none")
        clock = SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now_s, time=time.time)
        monkeypatch.setattr(supervisor, "time", clock)
        monkeypatch.setattr(Supervisor, "_life", self.life)
        self.supervisor = Supervisor(
            *(Installation(Path("none"), None), Endpoint("127.0.0.1", 1, 2), self.folder, []),
            *(self, Limits()),
            streams=(),
            most_memory=None,
            log_level="warning",
            log_file=log,
        )

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.stops |= self.now_s > self.stop_s

    @contextmanager
    def life(self) -> Iterator["World"]:
        self.begun_s.append(self.now_s)
        self.end = next(self.ends, None)
        yield self

    def wait_until_ready(self) -> None:
        if isinstance(self.end, Exception):
            raise self.end

    def watch(self) -> None:
        if self.end is None:
            self.stops = 1
        else:
            raise self.end[0]  # type: ignore[index]  # an error that is none has been raised

    def drain(self, *, full: bool = False) -> None:
        self.drained_full.append(full)

    def run(self, *ends: Exception | tuple[Exception], on_ready: OnReady = lambda *_: None) -> None:
        """Run lives that end so; the one after them is told to stop."""
        self.ends = iter(ends)
        self.supervisor.run(on_ready)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "log").write_text("one\ntwo\n")
    return World(tmp_path / "log", monkeypatch)


KILLED = Died("killed", exit_code=-9)


@pytest.mark.parametrize("code", [0, 3])
def test_what_ends_by_itself_at_the_first_start_is_not_started_again(
    world: World, code: int
) -> None:
    with pytest.raises(ServeError, match=r"become ready 1 times(?s:.*)Its last lines:\none\ntwo$"):
        world.run(Died("ended", exit_code=code))


@pytest.mark.parametrize("code", [0, 3])
def test_what_ends_by_itself_later_is_started_again(world: World, code: int) -> None:
    world.run((KILLED,), Died("ended", exit_code=code))
    assert len(world.begun_s) == 3
    assert world.drained_full == [False]


@pytest.mark.parametrize(("before", "most"), [((), 5), (((KILLED,),), 20)])
def test_starts_that_fail_in_a_row_are_given_up_later_where_it_once_was_ready(
    world: World, before: Sequence[tuple[Exception]], most: int
) -> None:
    with pytest.raises(ServeError, match=f"did not become ready {most} times in a row"):
        world.run(*before, *[KILLED] * 99)


def test_a_start_that_succeeds_begins_a_new_row(world: World) -> None:
    world.run(*[KILLED] * 4, (KILLED,), *[KILLED] * 18)
    assert len(world.begun_s) == 24


def test_the_pauses_between_deaths_grow(world: World) -> None:
    world.run(*[(KILLED,)] * 6)
    begun_s = world.begun_s
    pauses = [after - before for before, after in zip(begun_s, begun_s[1:], strict=False)]
    assert pauses[0] == 0
    assert all(after > before for before, after in zip(pauses, pauses[1:], strict=False))
    world.stops = 0
    world.sleep(3600)
    begun_s.clear()
    world.run((KILLED,))
    assert begun_s[0] == begun_s[1]


def test_a_pause_ends_when_it_is_told_to_stop(world: World) -> None:
    world.stop_s = 1.0  # within the third pause
    world.run(*[(KILLED,)] * 9)
    assert len(world.begun_s) == 3
    assert world.now_s == pytest.approx(1.0, abs=0.2)


def test_a_server_that_is_full_is_drained_so_and_started_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.run((Full("it takes 9 MiB"),))
    assert world.drained_full == [True, False]
    assert "it takes 9 MiB; draining it and starting it again" in caplog.text


def test_what_the_system_refuses_is_an_error_at_the_first_start_only(world: World) -> None:
    with pytest.raises(PermissionError):
        world.run(PermissionError("no such luck"))
    world.run((KILLED,), PermissionError("no such luck"))
    assert len(world.begun_s) == 4


def test_who_does_not_read_that_it_is_ready_does_not_end_it(world: World) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    world.run((KILLED,), on_ready=gone)
    assert len(world.begun_s) == 2
