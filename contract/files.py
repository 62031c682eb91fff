"""Files: reading what may be anybody's, and writing whole or not at all.

What is read are regular files only, bounded, and shown without harm: a FIFO, a device or an endless
file under an expected name would otherwise hang whoever reads it, and a text out of a file may hold
escape sequences that a terminal obeys.
"""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

# C0 and C1 control characters but newline and tab, what turns the direction of a text or breaks its
# line, and halves of characters, which no terminal's encoding has.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

# A dotted key of a hundred parts; possessive, so that no text is looked through twice.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}""")
_MOST_LEVELS = 100
_TAIL_BYTES = 64 * 2**10
# What a file may have beyond its size: it is being written, or one of /proc, which tell none.
_GROWTH = 2**20

TEMPORARY = ".tmp-"

# Errors of a disk that is full, or of a quota that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file (or a link to one) for reading.

    Raises:
        OSError: It is missing, cannot be read, or is a folder, a FIFO, a socket or a device.
    """
    # Without O_NONBLOCK opening a FIFO waits for a writer; for regular files it means nothing.
    # Windows has O_BINARY instead; no descriptor of Python's is inherited, on any system.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    return io.BufferedReader(io.FileIO(descriptor, "rb"))


def read_regular(path: str | os.PathLike[str], *, most: int) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: The file.
        most: The largest size that is read, in bytes.

    Raises:
        OSError: As for :func:`open_regular`, or it is larger than ``most``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Room for all that is asked for is made before anything is read.
        most = min(most, size + _GROWTH)
        data = b"" if size > most else file.read(most + 1)
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", os.fspath(path))
    return data


def sha256_regular(path: str | os.PathLike[str], *, most: int | None = None) -> str:
    """Return the SHA-256 of a regular file, hexadecimal; it is read in blocks.

    Args:
        path: The file.
        most: The largest size that is read, in bytes; None for any.

    Raises:
        OSError: As for :func:`open_regular`, or it is larger than ``most``.
    """
    with open_regular(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", os.fspath(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def last_lines(path: str | os.PathLike[str], count: int) -> str:
    """Return the last ``count`` lines of a file; nothing of what can only be written to."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            tail = file.read(_TAIL_BYTES)
    except OSError:
        return ""
    return "\n".join(tail.decode(errors="replace").splitlines()[-count:])


def open_append(path: str | os.PathLike[str]) -> io.FileIO:
    """Open what a log is written to: a file, a device such as /dev/null, or a FIFO that is read.

    Raises:
        OSError: It cannot be written, or is a FIFO that nobody reads, which would be waited for.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            error.strerror = "nobody reads it; start its reader first"
        raise
    os.set_blocking(descriptor, True)
    return io.FileIO(descriptor, "a")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        ValueError: It is no TOML, no UTF-8, or nested too deeply.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        if _LONG_KEY.search(text):  # the parser would take the square of its length
            raise RecursionError
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error})") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # Dotted keys and headers nest without any recursion of the parser's; whoever reads them recurs.
    level: list[Any] = [table]
    for _ in range(_MOST_LEVELS):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    return table


def is_plain_name(name: str) -> bool:
    """Whether ``name`` names a file inside a folder: no separator, no way up, not empty."""
    return bool(name) and Path(name).name == name and name not in (".", "..") and "\0" not in name


def printable(text: str) -> str:
    r"""Return ``text`` with control characters written out (``\x1b``), fit for a terminal."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def write_new(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file that is not there yet, and have it on the disk when this returns.

    Args:
        path: The file.
        data: All that it is to hold.
        sync: Whether the disk is waited for.

    Raises:
        FileExistsError: Something has that name.
        OSError: It cannot be written; what there is of it is removed.
    """
    try:
        with path.open("xb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            if sync:
                os.fsync(file.fileno())
    except FileExistsError:
        raise
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def write_atomic(path: Path, data: bytes, *, beside: Path | None = None, sync: bool = True) -> None:
    """Put ``data`` under ``path``, in place of what is there: whole and synced, or not at all.

    Temporary file, fsync, rename, fsync of the folder. After an error nothing of it may be taken
    for written, and it is to be written again, never synced again: the kernel may have dropped the
    pages (Rebello et al., USENIX ATC 2020).

    Args:
        path: The file.
        data: All that it is to hold.
        beside: Folder for the temporary file, whose name begins with :data:`TEMPORARY`, on the same
            file system; if left out the file's own.
        sync: Whether the disk is waited for; without, a process that dies leaves the old file or
            the new one, a machine that does may leave either, or an empty one.

    Raises:
        OSError: It cannot be written, ``filename`` is ``path``; the old file is as it was, unless
            only the last step failed.
    """
    temporary = (beside or path.parent) / f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}"
    try:
        write_new(temporary, data, sync=sync)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = os.fspath(path)
            with suppress(AttributeError):
                del error.filename2  # of the rename; None would be shown
        raise
    if sync:
        sync_folder(path.parent)


def no_room(path: Path, size: int, error: OSError) -> str:
    """Return for people that ``path``, of ``size`` bytes, has no room; ``error`` is in ``FULL``."""
    if error.errno == errno.EDQUOT:
        return f"your disk quota has no room for {path}, {size:,} bytes"
    there = next(folder for folder in path.parents if folder.exists())
    state = os.statvfs(there)
    free = state.f_bavail * state.f_frsize
    short = max(size - free, 1)
    return (
        f"no space left for {path}: it takes {size:,} bytes and {free:,} are free, {short:,} short"
    )


def sweep_temporary(folder: Path) -> None:
    """Remove what killed writers have left in ``folder``, where nobody writes now."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            path.unlink()


def publish_folder(made: Path, folder: Path) -> None:
    """Give the finished folder ``made``, whose files are synced, the name ``folder``.

    Raises:
        OSError: ``folder`` holds something, or is on another file system.
    """
    sync_folder(made)
    made.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
