"""The list of a tar file's members, read strictly.

Python's ``tarfile`` takes a damaged header for the end of the file, and some of them for ever; here
whatever is not as it should be is refused, and little is read at a time. The format is that of
POSIX.1-2001 (pax) and of GNU tar, without sparse files.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = tarfile.BLOCKSIZE
_MOST_NOTE_BYTES = 2**14  # of a header that holds a longer name; people's have hundreds
_MOST_AFTER_END = 2**20  # zeros, which fill up a tape's block


class Member(NamedTuple):
    """A member of a tar file: its name, where its bytes begin, how many they are, what it is."""

    name: str
    offset: int
    size: int
    is_file: bool
    is_folder: bool


def members_of(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of a tar file that is not compressed, in their order.

    Raises:
        ValueError: It is damaged, cut off, or followed by something.
        OSError: It cannot be read.
    """
    total = os.fstat(file.fileno()).st_size
    notes: dict[str, str] = {}
    while len(block := file.read(_BLOCK)) == _BLOCK:
        if not block.strip(b"\0"):
            _check_end(file, total)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ValueError(f"it is no tar file, or damaged ({error})") from None
        except (IndexError, OverflowError) as error:
            raise ValueError("it is damaged") from error
        offset = file.tell()
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            notes |= _notes(header, file)
            continue
        size = _number(notes.get("size", header.size))
        end = offset + -(-size // _BLOCK) * _BLOCK
        if size < 0 or end > total:
            raise ValueError("it is cut off, or damaged")
        is_plain = header.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
        is_sparse = any(key.startswith("GNU.sparse") for key in notes)
        name = notes.get("path", header.name)
        yield Member(name, offset, size, is_plain and not is_sparse, header.isdir())
        notes = {}
        file.seek(end)
    raise ValueError("it is cut off: there is no end mark")


def _check_end(file: BinaryIO, total: int) -> None:
    left = total - file.tell()
    if left > _MOST_AFTER_END or file.read(left).strip(b"\0"):
        raise ValueError("something comes after its end; give each tar file by itself")


def _notes(header: tarfile.TarInfo, file: BinaryIO) -> dict[str, str]:
    """Return what a header says of the member after it: of what is for all, nothing."""
    padded = -(-header.size // _BLOCK) * _BLOCK
    if not 0 <= header.size <= _MOST_NOTE_BYTES or len(body := file.read(padded)) != padded:
        raise ValueError(f"it is damaged: a header of {header.size:,} bytes")
    body = body[: header.size]
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(body.rstrip(b"\0"))}
    notes = {}
    while body:  # records of "LENGTH KEY=VALUE" and a newline; the length is that of all of it
        length = body[:6].partition(b" ")[0]
        record, body = body[: _number(_text(length))], body[_number(_text(length)) :]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ValueError("it is damaged: a pax header that is none")
        notes[_text(key)] = _text(value[:-1])
    return notes if header.type == tarfile.XHDTYPE else {}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(text: str | int) -> int:
    if isinstance(text, str) and not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"it is damaged: {text[:20]!r} is no number of bytes")
    return int(text)
