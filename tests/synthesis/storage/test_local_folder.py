import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentry.contract.errors import LatentryError, OutOfSpace
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.lock import LOCK_FILE
from latentry.synthesis.storage.object_store import ObjectStore

linux = pytest.mark.skipif(sys.platform != "linux", reason="who lives is read from /proc")


def test_what_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert LocalFolder(tmp_path / "none").sizes() == {}
    assert ObjectStore("memory://nothing/here").sizes() == {}


class Faults:
    """Makes the next syncs fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[int] = []
        self.synced: list[str] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.left:
            number = self.left.pop(0)
            raise OSError(number, os.strerror(number))
        self._fsync(descriptor)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@linux
def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    folder: LocalFolder, faults: Faults
) -> None:
    folder.write("a", b"data")
    file, its_folder = faults.synced
    assert file.startswith(str(folder.path / ".tmp-a-"))
    assert its_folder == str(folder.path)


@linux
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_after_a_failed_sync_the_file_is_written_again(
    folder: LocalFolder, faults: Faults, number: int
) -> None:
    faults.left = [number, number]
    folder.write("a", b"data")
    files = [path for path in faults.synced if ".tmp-" in path]
    assert len(set(files)) == 3  # never the same one twice
    assert folder.read("a") == b"data"
    assert set(os.listdir(folder.path)) == {"a"}


@linux
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    folder: LocalFolder, faults: Faults, number: int
) -> None:
    folder.write("a", b"old")
    faults.left = [number] * 10
    with pytest.raises(LatentryError, match=str(folder.path / "a")) as failure:
        folder.write("a", b"new")
    assert len(faults.synced) == 2 + (3 if number == errno.EIO else 1)  # no other is tried again
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert isinstance(failure.value, OutOfSpace) == full
    assert failure.value.exit_code == (75 if full else 1)
    assert "Traceback" not in str(failure.value)
    assert set(os.listdir(folder.path)) == {"a"}
    assert folder.read("a") == b"old"


@linux
def test_a_full_disk_says_how_many_bytes_are_short(
    folder: LocalFolder, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096))
    faults.left = [errno.ENOSPC]
    expected = (
        r"no space left for .*/out/a: it takes 20,000 bytes and 12,288 are free, 7,712 short; "
        "free some and run the same command again, it goes on from here"
    )
    with pytest.raises(OutOfSpace, match=expected):
        folder.write("a", bytes(20_000))


def test_an_interrupted_write_leaves_nothing(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write("a", b"data")
    assert set(os.listdir(folder.path)) == set()


def test_what_a_killed_writer_left_is_swept_and_never_counted(folder: LocalFolder) -> None:
    (folder.path / ".tmp-shard-000000.tar-0a0b0c0d").write_bytes(b"half")
    assert folder.sizes() == {}
    with folder.locked():
        assert set(os.listdir(folder.path)) == {LOCK_FILE}
        assert folder.sizes() == {}
        (folder.path / ".tmp-later-00000000").write_bytes(b"half")
    assert set(os.listdir(folder.path)) == set()


@linux
def test_the_folder_is_made_with_its_parents_and_synced(tmp_path: Path, faults: Faults) -> None:
    folder = LocalFolder(tmp_path / "a" / "b")
    with folder.locked():
        assert {str(tmp_path), str(tmp_path / "a")} <= set(faults.synced)
        folder.write("x", b"1")
    assert folder.sizes() == {"x": 1}


@linux
def test_a_removal_is_synced(folder: LocalFolder, faults: Faults) -> None:
    folder.write("x", b"1")
    faults.synced.clear()
    folder.remove("x")
    assert faults.synced == [str(folder.path)]


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LatentryError, match="file is no folder; give a folder"),
        LocalFolder(tmp_path / "file" / "out").locked(),
    ):
        pass
