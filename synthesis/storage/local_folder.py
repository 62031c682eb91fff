"""A job's files in a folder: whole and synced, or not at all (``write_atomic``); one writer."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from latentry.contract.errors import BadRequest, JobError, LatentryError, OutOfSpace
from latentry.contract.files import (
    FULL,
    TEMPORARY,
    no_room,
    open_regular,
    read_regular,
    sha256_regular,
    sweep_temporary,
    sync_folder,
    write_atomic,
)
from latentry.synthesis.storage.lock import (
    LOCK_FILE,
    MOST_LOCK_BYTES,
    identity,
    is_same_file,
    lock_bytes,
    owner_in,
    owner_name,
    owner_of,
    started,
)
from latentry.synthesis.storage.protocol import ATTEMPTS, MOST_BYTES, other_size

# An error of the device, or a file that another writer's sweep took away.
_WRITE_AGAIN = (errno.EIO, errno.ENOENT)


class LocalFolder:
    """A folder on a file system of this machine or a shared one."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # workers on other machines have other current folders
        self.url = str(self.path)

    def sizes(self) -> dict[str, int]:
        """Return the size of all that is there; temporary files and the lock are left out."""
        with self._explained(self.path):
            if not self._is_folder():
                return {}
            return {
                entry.name: _size(entry)
                for entry in os.scandir(self.path)
                if not entry.name.startswith(TEMPORARY) and entry.name != LOCK_FILE
            }

    def holds(self, name: str) -> bool:
        """Whether there is anything under this name."""
        return os.path.lexists(self.path / name)

    def told(self, name: str) -> tuple[int, str]:
        """Return a file's size; file systems tell no hashes."""
        with self._explained(self.path / name), open_regular(self.path / name) as file:
            return os.fstat(file.fileno()).st_size, ""

    def sha256(self, name: str, *, most: int) -> str:
        """Return the SHA-256 of a file."""
        with self._explained(self.path / name):
            return sha256_regular(self.path / name, most=most)

    def open(self, name: str, *, size: int) -> BinaryIO:
        """Open a file."""
        with self._explained(self.path / name):
            file = open_regular(self.path / name)
        found = os.fstat(file.fileno()).st_size
        if found != size:
            file.close()
            raise other_size(self.path / name, found, size)
        return file

    def read(self, name: str, *, most: int = MOST_BYTES) -> bytes:
        """Return a file's bytes."""
        with self._explained(self.path / name):
            return read_regular(self.path / name, most=most)

    def write(self, name: str, data: bytes) -> None:
        """Write a file; again under another temporary name where the device failed."""
        for attempt in range(ATTEMPTS):
            try:
                return write_atomic(self.path / name, data)
            except OSError as error:
                if error.errno not in _WRITE_AGAIN or attempt == ATTEMPTS - 1:
                    raise self._not_written(name, len(data), error) from error
        return None

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.path / name).unlink()
            sync_folder(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise JobError(f"{self.path / name} cannot be removed: {error.strerror}") from error

    @contextlib.contextmanager
    def locked(self, *, take_over: bool = False) -> Iterator[None]:
        """Make the folder, keep other writers out and sweep what a killed one left."""
        try:
            self._make_folder()
            descriptor = self._take_lock(take_over)
        except OSError as error:
            raise self._not_written(LOCK_FILE, len(lock_bytes()), error) from error
        try:
            sweep_temporary(self.path)
            yield
        finally:
            # A worker that was ended in the middle of a file has left it.
            sweep_temporary(self.path)
            with contextlib.suppress(OSError):
                (self.path / LOCK_FILE).unlink()
            os.close(descriptor)

    def owner(self) -> str:
        """Return which process holds the lock."""
        try:
            owner = owner_in(read_regular(self.path / LOCK_FILE, most=MOST_LOCK_BYTES))
        except OSError:
            return ""
        if owner is None:
            return ""
        here = identity()
        gone = all(owner.get(key) == here[key] for key in ("host", "boot", "namespace")) and (
            started(owner["pid"]) != owner["started"]
        )
        return "" if gone else owner_name(owner)

    def _is_folder(self) -> bool:
        """Whether the folder is there.

        Raises:
            BadRequest: Something else is there, or in the way to it.
        """
        for path in (self.path, *self.path.parents):
            if path.is_dir():
                return path == self.path
            if os.path.lexists(path):
                what = "leads to nothing" if path.is_symlink() else "is no folder"
                raise BadRequest(f"{path} {what}; give a folder, or a name that is free")
        return False

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobError(f"{path} cannot be read: {error.strerror}") from error

    def _make_folder(self) -> None:
        self._is_folder()
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in new:
            sync_folder(path.parent)

    def _not_written(self, name: str, size: int, error: OSError) -> LatentryError:
        """Return the error for a file that could not be written."""
        if error.errno not in FULL:
            return JobError(
                f"{self.path / name} cannot be written: {error.strerror}; when that is mended, the "
                "same command goes on from here"
            )
        return OutOfSpace(
            f"{no_room(self.path / name, size, error)}; free some and run the same command again, "
            "it goes on from here"
        )

    def _take_lock(self, take_over: bool) -> int:
        """Return the descriptor of the lock file, which names this process from now on."""
        path = self.path / LOCK_FILE
        while True:
            # Never through a link, which would make the file somewhere else.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file")
                self._hold(descriptor)
                if not is_same_file(descriptor, path):
                    os.close(descriptor)
                    continue
                if not take_over:
                    self._check_owner(owner_of(descriptor))
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, lock_bytes(), 0)
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            return descriptor

    def _hold(self, descriptor: int) -> None:
        """Of several who find the same stale lock, the kernel lets one go on."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._at_work(owner_of(descriptor) or {}) from None
        except OSError as error:  # a file system without such locks: what is written must do
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise

    def _check_owner(self, owner: dict[str, Any] | None) -> None:
        if owner is None:
            return
        if {**identity(), **{key: owner.get(key) for key in ("pid", "started")}} != owner:
            raise JobError(
                f"{self.path} is locked by {owner_name(owner)}, which cannot be looked at from "
                "here (another machine, container or boot); when you know that it has ended, say "
                "--take-over"
            )
        if started(owner["pid"]) == owner["started"]:
            raise self._at_work(owner)

    def _at_work(self, owner: dict[str, Any]) -> JobError:
        return JobError(
            f"{self.path} is locked by {owner_name(owner)}, which is at work; wait for it or "
            "end it, or give another --out"
        )


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
