"""What another user of the machine puts into shared memory, where everybody may write."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentry.serving.server.folder import ServerFolder, create_server_folder

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


def test_a_pipe_there_is_not_waited_for(folder: ServerFolder) -> None:
    os.mkfifo(SHM / f"{folder.shm_prefix}pipe")
    folder.close_shared_memory()
    folder.kill_leftovers()


def test_a_name_that_was_seen_cannot_be_taken(folder: ServerFolder) -> None:
    folder.fill([])
    first = folder.signs
    folder.kill_leftovers()
    assert not first.exists()
    first.touch()
    folder.fill([])
    assert folder.signs != first
    assert folder.signs.stat().st_mode & 0o777 == 0o700
    assert folder.mark_draining()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_is_somebody_elses_is_left_and_does_no_harm(folder: ServerFolder) -> None:
    folder.fill([])
    theirs, ours = (SHM / f"{folder.shm_prefix}{name}" for name in ("theirs", "ours"))
    theirs.mkdir()
    os.chown(theirs, 65_534, 65_534)
    ours.touch()
    folder.remove()
    assert theirs.exists()
    assert not ours.exists()
    assert not folder.path.exists()
