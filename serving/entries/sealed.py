"""JSON files that are sealed: their last line holds the SHA-256 of all that stands before it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from latentry.contract.errors import EntryError
from latentry.contract.files import read_regular
from latentry.contract.strict import Strict, explain

FORMAT: Literal[3] = 3
_MOST_BYTES = 16 * 2**20
_SEAL = b',\n  "sha256": "'

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Content = TypeVar("Content", bound=Strict)


class FileRecord(Strict):
    """SHA-256 and size in bytes of one file."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


def file_record(data: bytes) -> FileRecord:
    """Return the record of a file with these bytes."""
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def json_bytes(content: Strict) -> bytes:
    """Return the bytes of a file with this content, for people to read."""
    text = json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return f"{text}\n".encode()


def sealed_bytes(content: Strict) -> bytes:
    """Return the bytes of a sealed file."""
    head = json_bytes(content).removesuffix(b"\n}\n")
    return head + _SEAL + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'


def read_entry_file(path: Path) -> bytes:
    """Return the bytes of one of an entry's JSON files.

    Raises:
        EntryError: It cannot be read.
    """
    try:
        return read_regular(path, most=_MOST_BYTES)
    except OSError as error:
        raise EntryError(
            f"{path} cannot be read ({error.strerror}): the entry is half-written, of another "
            "version, or none; export it again, or delete the folder"
        ) from error


def read_sealed(path: Path, kind: type[Content]) -> Content:
    """Return the content of a sealed file after checking its seal.

    Raises:
        EntryError: It cannot be read, its seal is broken, or it is of another format.
    """
    head, _, tail = read_entry_file(path).rpartition(_SEAL)
    found = hashlib.sha256(head).hexdigest()
    if tail != found.encode() + b'"\n}\n':
        sealed = tail[:64].decode(errors="replace") or "missing"
        raise EntryError(
            f"{path} was changed: its SHA-256 is {found}, the seal says {sealed}; export again"
        )
    return content_of(path, head + b"\n}", kind)


def content_of(path: Path, text: bytes, kind: type[Content]) -> Content:
    """Return what ``text``, read from ``path``, says.

    Raises:
        EntryError: It is not understood.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        # What else differs there follows from it, and would bury the advice.
        others = [item for item in error.errors() if item["loc"] == ("format",)]
        what = f"format: {others[0]['msg']}, of another version" if others else explain(error)
        raise EntryError(f"{path} is not understood: {what}; export again") from error
