import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentry.contract.errors import BadRequest, JobError, LatentryError, OutOfSpace
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.lock import LOCK_FILE
from latentry.synthesis.storage.object_store import ObjectStore
from latentry.synthesis.storage.protocol import Storage
from latentry.synthesis.storage.urls import storage_from_url

linux = pytest.mark.skipif(sys.platform != "linux", reason="who lives is read from /proc")


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    (tmp_path / "out").mkdir()
    return LocalFolder(tmp_path / "out")


@pytest.fixture
def memory() -> Iterator[ObjectStore]:
    fsspec = pytest.importorskip("fsspec", reason="object stores need the extra [synthesis]")
    yield ObjectStore("memory://jobs/digits/")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest) -> Storage:
    made: Storage = request.getfixturevalue(request.param)
    return made


def names(folder: LocalFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


# --- files --------------------------------------------------------------------------------------


def test_files_come_back_as_they_were_written(storage: Storage) -> None:
    storage.write("a.json", b"one")
    storage.write("b.tar", bytes(range(256)) * 4000)
    storage.write("empty", b"")
    assert storage.sizes() == {"a.json": 3, "b.tar": 1024000, "empty": 0}
    assert storage.read("b.tar") == bytes(range(256)) * 4000
    storage.write("a.json", b"another")
    assert storage.read("a.json") == b"another"
    storage.remove("a.json")
    storage.remove("a.json")
    assert "a.json" not in storage.sizes()


def test_a_missing_file_is_named(storage: Storage) -> None:
    with pytest.raises(JobError, match=r"digits/gone.json|out/gone.json cannot be read"):
        storage.read("gone.json")


def test_what_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert LocalFolder(tmp_path / "none").sizes() == {}
    assert ObjectStore("memory://nothing/here").sizes() == {}


def test_two_stores_of_one_address_see_each_other(memory: ObjectStore) -> None:
    memory.write("shard.json", b"x")
    with memory.locked(), storage_from_url("memory://jobs/digits").locked():
        assert storage_from_url("memory://jobs/digits").sizes() == {"shard.json": 1}
    assert memory.owner() == ""


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_an_address_of_this_machine_is_a_folder(tmp_path: Path, prefix: str) -> None:
    storage = storage_from_url(f"{prefix}{tmp_path}/out")
    assert isinstance(storage, LocalFolder)
    assert storage.path == tmp_path / "out"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "abfss://bucket/x"])
def test_an_address_that_nothing_knows_is_refused(url: str) -> None:
    pytest.importorskip("fsspec", reason="object stores need the extra [synthesis]")
    with pytest.raises(BadRequest, match=rf"--out {url}: .*; give a folder, or install the"):
        storage_from_url(url)


# --- the commit protocol ------------------------------------------------------------------------


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
def test_after_a_failed_sync_the_file_is_written_again(folder: LocalFolder, faults: Faults) -> None:
    faults.left = [errno.EIO, errno.EIO]
    folder.write("a", b"data")
    files = [path for path in faults.synced if ".tmp-" in path]
    assert len(set(files)) == 3  # never the same one twice
    assert folder.read("a") == b"data"
    assert names(folder) == {"a"}


@linux
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    folder: LocalFolder, faults: Faults, number: int
) -> None:
    folder.write("a", b"old")
    faults.left = [number] * 10
    with pytest.raises(LatentryError, match=str(folder.path / "a")) as failure:
        folder.write("a", b"new")
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert isinstance(failure.value, OutOfSpace) == full
    assert failure.value.exit_code == (75 if full else 1)
    assert "Traceback" not in str(failure.value)
    assert names(folder) == {"a"}
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
    assert names(folder) == set()


def test_what_a_killed_writer_left_is_swept_and_never_counted(folder: LocalFolder) -> None:
    (folder.path / ".tmp-shard-000000.tar-0a0b0c0d").write_bytes(b"half")
    assert folder.sizes() == {}
    with folder.locked():
        assert names(folder) == {LOCK_FILE}
        assert folder.sizes() == {}
        (folder.path / ".tmp-later-00000000").write_bytes(b"half")
    assert names(folder) == set()


def test_the_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "a" / "b")
    with folder.locked():
        folder.write("x", b"1")
    assert folder.sizes() == {"x": 1}


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LatentryError, match="file is no folder; give a folder"),
        LocalFolder(tmp_path / "file" / "out").locked(),
    ):
        pass


# --- the lock -----------------------------------------------------------------------------------

HOLD = """
import os, sys
from pathlib import Path
from latentry.synthesis.storage.local_folder import LocalFolder
with LocalFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read(1)
    if len(sys.argv) > 2:
        os._exit(9)
"""


@contextmanager
def holder(folder: LocalFolder, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Hold the lock in another process until the block ends."""
    command = [sys.executable, "-c", HOLD, str(folder.path), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=120)


def lock(folder: LocalFolder, *, take_over: bool = False) -> None:
    with folder.locked(take_over=take_over):
        pass


def test_a_living_owner_is_not_disturbed_whatever_is_said(folder: LocalFolder) -> None:
    with holder(folder) as process:
        pattern = rf"out is locked by process {process.pid} on .*, which is at work; wait for it"
        for take_over in (False, True):
            with pytest.raises(JobError, match=pattern):
                lock(folder, take_over=take_over)
        assert folder.owner().startswith(f"process {process.pid} on ")
        assert (folder.path / LOCK_FILE).exists()
    assert names(folder) == set()
    lock(folder)


@linux
def test_a_dead_owners_lock_is_taken_over(folder: LocalFolder) -> None:
    with holder(folder, "die"):
        pass
    assert names(folder) == {LOCK_FILE}
    assert folder.owner() == ""
    lock(folder)
    assert names(folder) == set()


def test_one_process_locks_once(folder: LocalFolder) -> None:
    with folder.locked(), pytest.raises(JobError, match=f"process {os.getpid()} on .* at work"):
        lock(LocalFolder(folder.path))


@pytest.fixture
def leave_lock(folder: LocalFolder) -> Callable[..., dict[str, Any]]:
    """Return what leaves a lock of this process, changed as told, as if a crash had left it."""

    def leave(**changes: Any) -> dict[str, Any]:
        with folder.locked():
            owner = json.loads((folder.path / LOCK_FILE).read_bytes())
        owner |= changes
        (folder.path / LOCK_FILE).write_text(json.dumps(owner))
        return owner

    return leave


def test_the_lock_says_who_holds_it_and_nothing_else(folder: LocalFolder) -> None:
    with folder.locked():
        owner = json.loads((folder.path / LOCK_FILE).read_bytes())
    assert owner["pid"] == os.getpid()
    assert set(owner) == {"host", "boot", "namespace", "pid", "started"}


@linux
@pytest.mark.parametrize(
    "changes",
    [
        {"started": "1"},  # this pid, given to another process since
        {"pid": 2**22 + 1},
    ],
)
def test_a_lock_of_a_process_that_is_gone_is_taken_over(
    folder: LocalFolder, leave_lock: Callable[..., dict[str, Any]], changes: dict[str, Any]
) -> None:
    leave_lock(**changes)
    assert folder.owner() == ""
    lock(folder)


@linux
@pytest.mark.parametrize("key", ["host", "boot", "namespace"])
def test_a_lock_from_elsewhere_is_only_taken_over_when_told_so(
    folder: LocalFolder, leave_lock: Callable[..., dict[str, Any]], key: str
) -> None:
    owner = leave_lock(**{key: "another", "pid": 4242})
    pattern = f"locked by process 4242 on {owner['host']}, which cannot be looked at from here "
    with pytest.raises(JobError, match=pattern + r".*\n?.*say --take-over"):
        lock(folder)
    assert folder.owner() == f"process 4242 on {owner['host']}"
    assert json.loads((folder.path / LOCK_FILE).read_bytes()) == owner  # it is left as it was
    lock(folder, take_over=True)
    assert names(folder) == set()


@linux
@pytest.mark.parametrize(
    ("started", "taken"), [(None, False), ("1", True)], ids=["alive", "another"]
)
def test_where_the_file_system_has_no_locks_what_is_written_decides(
    folder: LocalFolder,
    leave_lock: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    started: str | None,
    taken: bool,
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    leave_lock(**({"started": started} if started else {}))
    if taken:
        lock(folder)
    else:
        with pytest.raises(JobError, match=f"process {os.getpid()} on .*, which is at work"):
            lock(folder)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"{", b'{"pid'])
def test_a_lock_file_that_a_crash_left_empty_or_torn_stops_nobody(
    folder: LocalFolder, content: bytes
) -> None:
    (folder.path / LOCK_FILE).write_bytes(content)
    assert folder.owner() == ""
    lock(folder)


def test_a_lock_that_its_owner_removed_meanwhile_is_no_lock(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not calls:  # the owner before ends between our opening the file and our locking it
            (folder.path / LOCK_FILE).unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder.locked(), pytest.raises(JobError, match="which is at work"):
        lock(LocalFolder(folder.path))


CONTEND = """
import os, sys
from pathlib import Path
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.contract.errors import JobError
folder, witness, won = LocalFolder(Path(sys.argv[1])), Path(sys.argv[2]), 0
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(300):
    try:
        with folder.locked():
            won += 1
            os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
            witness.unlink()
            if won == 20:
                os._exit(7)  # with the lock in its hands
    except JobError as error:
        assert "is at work" in str(error), error
print(won)
"""


@linux
def test_of_several_contenders_one_is_inside_at_a_time(folder: LocalFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTEND, str(folder.path), str(tmp_path / "witness")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go")[1] for process in processes]
    assert [process.returncode for process in processes if process.returncode not in (0, 7)] == []
    assert answers == [""] * 4
    assert any(process.returncode == 7 for process in processes)
    lock(folder)


# --- object stores ------------------------------------------------------------------------------


def test_an_upload_is_tried_again_and_then_told(
    memory: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    pipe, failures = files.pipe_file, [OSError("reset by peer")] * 2

    def pipe_file(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        pipe(*arguments)

    monkeypatch.setattr(type(files), "pipe_file", lambda _, *arguments: pipe_file(*arguments))
    memory.write("a", b"data")
    assert memory.read("a") == b"data"
    failures += [OSError(errno.ENOSPC, "quota")]
    with pytest.raises(
        OutOfSpace, match=r"memory://jobs/digits cannot be written \(b, 4 bytes\).*quota"
    ):
        memory.write("b", b"data")
