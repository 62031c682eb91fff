"""What others have on the machine: in shared memory and in /tmp, where everybody may write."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from running_server import is_running, open_files

from latentry.serving.server import folder as folder_module
from latentry.serving.server.folder import (
    ServerFolder,
    create_server_folder,
    remove_stub_folders,
)
from latentry.serving.triton.heartbeats import DRAIN_MARK
from latentry.serving.triton.tritonserver import SERVER_ID

SHM = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[ServerFolder]:
    """Return the folder of a server, and remove what a test leaves under its names."""
    with create_server_folder() as made:
        yield made
    for path in SHM.glob(f"{made.shm_prefix}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_link_there_changes_nothing_of_the_users(folder: ServerFolder, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    (tmp_path / "file").touch(mode=0o644)
    (SHM / f"{folder.shm_prefix}one").symlink_to(own)
    (SHM / f"{folder.shm_prefix}two").symlink_to(tmp_path / "file")
    region = SHM / f"{folder.shm_prefix}three"
    region.touch(mode=0o644)
    folder.close_shared_memory()
    assert own.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert region.stat().st_mode & 0o777 == 0o600


def test_what_is_looked_at_again_and_again_does_not_stay_open(folder: ServerFolder) -> None:
    (SHM / f"{folder.shm_prefix}region").touch()
    os.mkfifo(SHM / f"{folder.shm_prefix}pipe")
    folder.close_shared_memory()
    assert open_files(SHM / folder.shm_prefix) == []


def test_a_pipe_there_is_not_waited_for(folder: ServerFolder) -> None:
    os.mkfifo(SHM / f"{folder.shm_prefix}pipe")
    folder.close_shared_memory()
    folder.kill_leftovers()


def test_a_name_that_was_seen_cannot_be_taken(folder: ServerFolder) -> None:
    folder.fill([], ())
    first = folder.signs
    folder.kill_leftovers()
    assert not first.exists()
    first.touch()
    folder.fill([], ())
    assert folder.signs != first
    assert folder.signs.stat().st_mode & 0o777 == 0o700
    assert folder.mark_draining()
    assert (folder.signs / DRAIN_MARK).exists()
    folder.kill_leftovers()
    assert not folder.mark_draining()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_is_somebody_elses_is_left_and_does_no_harm(folder: ServerFolder) -> None:
    folder.fill([], ())
    theirs, ours = (SHM / f"{folder.shm_prefix}{name}" for name in ("theirs", "ours"))
    theirs.mkdir()
    os.chown(theirs, 65_534, 65_534)
    ours.touch()
    folder.remove()
    assert theirs.exists()
    assert not ours.exists()
    assert not folder.path.exists()


def test_a_process_may_end_before_it_is_killed(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, SERVER_ID: folder.server_id}
    started = [subprocess.Popen(["sleep", "1000"], env=environment) for _ in range(2)]

    class Quick(psutil.Process):
        def kill(self) -> None:
            started[0].kill()
            started[0].wait()
            super().kill()

    found = [Quick(started[0].pid), psutil.Process(started[1].pid)]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(found))
    folder.kill_leftovers()
    assert not any(is_running(process.pid) for process in started)
    for process in started:
        process.wait()


def test_a_process_that_is_just_being_loaded_is_found(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows no environment of it yet."""
    environment = {**os.environ, SERVER_ID: folder.server_id}
    with subprocess.Popen(["sleep", "1000"], env=environment) as started:

        class Loading(psutil.Process):
            looks = 0

            def environ(self) -> dict[str, str]:
                self.looks += 1
                return {} if self.looks < 3 else super().environ()

        found = Loading(started.pid)
        monkeypatch.setattr(psutil, "process_iter", lambda: iter([found]))
        # However long this process is kept waiting itself.
        monkeypatch.setattr(folder_module, "_YOUNG_S", 1000.0)
        monkeypatch.setattr(folder_module, "_LOADED_S", 1000.0)
        try:
            folder.kill_leftovers()
            assert not is_running(started.pid)
        finally:
            started.kill()


LONG_AGO_S = 1_000_000_000.0  # when no other server was started here


@pytest.mark.parametrize(
    ("made_after_s", "theirs_after_s", "stays"),
    [
        (-5.0, None, True),  # of whoever ran before
        (-0.5, None, False),  # by a file system's coarser clock
        (30.0, None, False),
        (65.0, None, True),
        (30.0, 10.0, True),
        (30.0, 30.5, True),
        (30.0, 35.0, False),
        (30.0, -35.0, False),
    ],
)
def test_an_empty_folder_stays_where_another_server_may_have_made_it(
    monkeypatch: pytest.MonkeyPatch,
    made_after_s: float,
    theirs_after_s: float | None,
    stays: bool,
) -> None:
    servers = [
        SimpleNamespace(info={"name": "tritonserver", "create_time": LONG_AGO_S + theirs_after_s})
        for theirs_after_s in [theirs_after_s]
        if theirs_after_s is not None
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda _: iter(servers))
    made = Path(tempfile.mkdtemp(prefix="python_env_", dir="/tmp"))
    name = made.with_name(made.name[: len("python_env_") + 6])
    made.rename(name)
    try:
        os.utime(name, (LONG_AGO_S + made_after_s,) * 2)
        remove_stub_folders(LONG_AGO_S)
        assert name.exists() == stays
    finally:
        name.rmdir() if name.exists() else None
