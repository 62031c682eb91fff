"""Where a job's files go: a local folder, with a commit protocol, or an object store.

A file appears under its name whole and synced, or not at all. On a local file system: write a
temporary file, fsync, rename, fsync the folder. After a failed fsync the kernel may have dropped
the pages, so the file is written again, never synced again (Rebello et al., USENIX ATC 2020).
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from latentry.contract.errors import BadRequest, JobError, LatentryError, OutOfSpace, ServerGone
from latentry.contract.files import open_regular, read_regular, sha256_regular
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

_TEMPORARY = ".tmp-"
_ATTEMPTS = 3
MOST_BYTES = 64 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# An error of the device, or a file that another writer's sweep took away.
_WRITE_AGAIN = (errno.EIO, errno.ENOENT)


class Storage(Protocol):
    """A place for files with plain names."""

    url: str

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of all that is there, by name; -1 for what is no file."""
        ...

    def holds(self, name: str) -> bool:
        """Whether there is anything under this name."""
        ...

    def told(self, name: str) -> tuple[int, str]:
        """Return a file's size and, where the store tells it, its MD5; raises JobError."""
        ...

    def sha256(self, name: str, *, most: int) -> str:
        """Return the SHA-256 of a file of up to ``most`` bytes, read in blocks; raises JobError."""
        ...

    def open(self, name: str, *, size: int) -> BinaryIO:
        """Open a file that must have this size; raises JobError."""
        ...

    def read(self, name: str, *, most: int = MOST_BYTES) -> bytes:
        """Return a file's bytes; raises JobError where it is missing, no file or over ``most``."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; raises OutOfSpace."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def locked(self, *, take_over: bool = False) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out; raises JobError where one is at work."""
        ...

    def owner(self) -> str:
        """Return who holds the lock, for people; empty for nobody that is known."""
        ...


def storage_from_url(url: str) -> Storage:
    """Return the storage at ``url``: a folder's path, or a URL that fsspec knows.

    Raises:
        BadRequest: Nothing installed knows such a URL.
    """
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        return ObjectStore(url)
    return LocalFolder(Path(url))


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
                if not entry.name.startswith(_TEMPORARY) and entry.name != LOCK_FILE
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
            raise _other_size(self.path / name, found, size)
        return file

    def read(self, name: str, *, most: int = MOST_BYTES) -> bytes:
        """Return a file's bytes."""
        with self._explained(self.path / name):
            return read_regular(self.path / name, most=most)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, by the protocol of this module."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._write_once(name, data)
            except OSError as error:
                if error.errno not in _WRITE_AGAIN or attempt == _ATTEMPTS - 1:
                    raise self._not_written(name, len(data), error) from error
        return None

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.path / name).unlink()
            _sync_folder(self.path)
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
            self._sweep()
            yield
        finally:
            # A worker that was ended in the middle of a file has left it.
            self._sweep()
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

    def _write_once(self, name: str, data: bytes) -> None:
        temporary = self.path / f"{_TEMPORARY}{name}-{secrets.token_hex(4)}"
        try:
            with temporary.open("xb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            temporary.rename(self.path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self.path)

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
            _sync_folder(path.parent)

    def _not_written(self, name: str, size: int, error: OSError) -> LatentryError:
        """Return the error for a file that could not be written."""
        if error.errno not in _FULL:
            return JobError(
                f"{self.path / name} cannot be written: {error.strerror}; when that is mended, the "
                "same command goes on from here"
            )
        if error.errno == errno.EDQUOT:
            return OutOfSpace(
                f"your disk quota has no room for {self.path / name}, {size:,} bytes; free some "
                "and run the same command again, it goes on from here"
            )
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        state = os.statvfs(there)
        free = state.f_bavail * state.f_frsize
        short = max(size - free, 1)
        return OutOfSpace(
            f"no space left for {self.path / name}: it takes {size:,} bytes and {free:,} are free, "
            f"{short:,} short; free some and run the same command again, it goes on from here"
        )

    def _sweep(self) -> None:
        for path in self.path.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                path.unlink()

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


class ObjectStore:
    """Objects under a URL of fsspec's; one upload each, no lock.

    Two writers of one job write the same bytes, so they need no lock.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise BadRequest(
                f"--out {url}: {error}; give a folder, or install the package of fsspec's that "
                "knows such URLs"
            ) from error

    def sizes(self) -> dict[str, int]:
        """Return the size of every object."""
        self._files.invalidate_cache()
        with self._explained("listed"):
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(item["name"]).rpartition("/")[2]: int(item["size"] or 0)
            for item in found
            if item["type"] == "file"
        }

    def holds(self, name: str) -> bool:
        """Whether there is an object of this name."""
        with self._explained(f"read ({name})"):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def told(self, name: str) -> tuple[int, str]:
        """Return an object's size and, where the store tells it, its MD5."""
        self._files.invalidate_cache()
        with self._explained(f"read ({name})"), self._there(name):
            info = self._files.info(f"{self._root}/{name}")
        return int(info["size"] or 0), _told_md5(info)

    def sha256(self, name: str, *, most: int) -> str:
        """Return the SHA-256 of an object, which is fetched for it."""
        self._check_size(name, most)
        with (
            self._explained(f"read ({name})"),
            self._there(name),
            self._files.open(f"{self._root}/{name}", "rb") as file,
        ):
            return hashlib.file_digest(file, "sha256").hexdigest()

    def open(self, name: str, *, size: int) -> BinaryIO:
        """Return an object's bytes as a file."""
        found, _ = self.told(name)
        if found != size:
            raise _other_size(f"{self.url}/{name}", found, size)
        return io.BytesIO(self.read(name, most=size))

    def read(self, name: str, *, most: int = MOST_BYTES) -> bytes:
        """Return an object's bytes."""
        self._check_size(name, most)
        with self._explained(f"read ({name})"), self._there(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def _check_size(self, name: str, most: int) -> None:
        if self.told(name)[0] > most:
            raise JobError(f"{self.url}/{name} is larger than {most:,} bytes")

    @contextlib.contextmanager
    def _there(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise JobError(f"{self.url}/{name} is missing") from None

    def write(self, name: str, data: bytes) -> None:
        """Upload an object; it appears whole, as object stores do it."""
        # Where there are folders; a bucket that is not there is a mistake, and is not made.
        with contextlib.suppress(Exception):
            self._files.mkdir(self._root, create_parents=False)
        for attempt in range(_ATTEMPTS):
            try:
                with self._explained(f"written ({name}, {len(data):,} bytes)"):
                    self._files.pipe_file(f"{self._root}/{name}", data)
            except ServerGone:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._explained(f"removed ({name})"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the packages of fsspec raise, which share no base, into errors of ours."""
        try:
            yield
        except LatentryError:
            raise
        except Exception as error:
            text = f"{self.url} cannot be {what}: {type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno in _FULL:
                raise OutOfSpace(f"{text}; free some and run the same command again") from error
            raise ServerGone(
                f"{text}; check the address and its credentials, then run the same command "
                "again, it goes on from here"
            ) from error

    @contextlib.contextmanager
    def locked(self, *, take_over: bool = False) -> Iterator[None]:
        """Do nothing."""
        yield

    def owner(self) -> str:
        """Return that nobody is known."""
        return ""


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        found = entry.stat()
    except OSError:  # a link that leads nowhere
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _other_size(where: str | Path, found: int, size: int) -> JobError:
    return JobError(f"{where} was changed: it has {found:,} bytes, its record says {size:,}")


def _told_md5(info: Mapping[str, Any]) -> str:
    """Return the MD5 in what fsspec knows of an object, hexadecimal; empty where there is none.

    S3 has it as the ETag of what was uploaded in one part, without a key of the customer's;
    Google Cloud Storage as ``md5Hash``.
    """
    if re.fullmatch("[0-9a-f]{32}", tag := str(info.get("ETag", "")).strip('"')):
        return tag
    with contextlib.suppress(ValueError):
        return base64.b64decode(str(info.get("md5Hash", "")), validate=True).hex()
    return ""


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
