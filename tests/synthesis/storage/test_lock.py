import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from latentry.contract.errors import JobError
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.lock import LOCK_FILE, identity, owner_in

linux = pytest.mark.skipif(sys.platform != "linux", reason="who lives is read from /proc")


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
    assert set(os.listdir(folder.path)) == set()
    lock(folder)


@linux
def test_a_dead_owners_lock_is_taken_over(folder: LocalFolder) -> None:
    with holder(folder, "die"):
        pass
    assert set(os.listdir(folder.path)) == {LOCK_FILE}
    assert folder.owner() == ""
    lock(folder)
    assert set(os.listdir(folder.path)) == set()


def test_one_process_locks_once(folder: LocalFolder) -> None:
    with folder.locked(), pytest.raises(JobError, match=f"process {os.getpid()} on .* at work"):
        lock(LocalFolder(folder.path))


@pytest.fixture
def leave_lock(folder: LocalFolder) -> Callable[..., dict[str, Any]]:
    """Return what leaves a lock of this process, changed as told, as if a crash had left it."""

    def leave(**changes: Any) -> dict[str, Any]:
        with folder.locked():
            owner: dict[str, Any] = json.loads((folder.path / LOCK_FILE).read_bytes())
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
    assert set(os.listdir(folder.path)) == set()


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
    flock = fcntl.flock
    calls: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        if not calls:  # the owner before ends between our opening the file and our locking it
            (folder.path / LOCK_FILE).unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with folder.locked(), pytest.raises(JobError, match="which is at work"):
        lock(LocalFolder(folder.path))


def test_a_lock_is_never_made_through_a_link(folder: LocalFolder, tmp_path: Path) -> None:
    (folder.path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JobError, match="cannot be written"):
        lock(folder)
    assert not (tmp_path / "elsewhere").exists()


@linux
def test_an_owner_that_ended_and_was_not_reaped_is_gone(folder: LocalFolder) -> None:
    with holder(folder) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert folder.owner() == ""
        lock(folder)


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
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go")[1] for process in processes]
    assert [process.returncode for process in processes if process.returncode not in (0, 7)] == []
    assert answers == [""] * 4
    assert any(process.returncode == 7 for process in processes)
    lock(folder)


@pytest.mark.parametrize("fact", [{"pid": 10**4000}, {"pid": -1}, {"host": "x" * 3000}])
def test_a_lock_of_no_process_that_there_can_be_names_nobody(fact: dict[str, Any]) -> None:
    owner = identity()
    assert owner_in(json.dumps(owner).encode()) == owner
    assert owner_in(json.dumps({**owner, **fact}).encode()) is None
