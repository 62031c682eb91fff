"""What a job asks of the place for its files, wherever that is."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from latentry.contract.errors import JobError

MOST_BYTES = 64 * 2**20
ATTEMPTS = 3


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

    def locked(self, *, take_over: bool = False) -> AbstractContextManager[None]:
        """Keep other writers out; raises JobError where one is at work."""
        ...

    def owner(self) -> str:
        """Return who holds the lock, for people; empty for nobody that is known."""
        ...


def other_size(where: str | Path, found: int, size: int) -> JobError:
    """Return the error for a file of another size than its record's."""
    return JobError(f"{where} was changed: it has {found:,} bytes, its record says {size:,}")
