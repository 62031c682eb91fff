"""Every error that Latentry raises on purpose, as one tree.

::

    LatentryError
    ├── BadRequest          what was asked is not allowed; the message says what is
    ├── NotFound            no such model, version, file or entry
    ├── Busy                the server's queue is full; try again later
    ├── TimedOut            no answer within the caller's time
    ├── Draining            the server is shutting down and takes nothing new
    ├── ServerGone          nobody answers at the address, or the server died
    ├── ServerFault         the server answered with a fault that is none of the above
    ├── InvalidOutput       the generator produced NaN or infinity for some seeds
    ├── SpecError           a generator's spec contradicts itself
    ├── CheckpointError     a checkpoint folder is damaged or does not fit its spec
    ├── ExportRefused       an export failed a proof; nothing was published
    ├── EntryError          a repository entry is damaged, half-written or not an entry
    ├── ServeError          the server could not be started or kept up
    ├── JobError            a job's folder is in use, damaged, or of another job
    └── OutOfSpace          the disk is full; free some and run the same again
"""

import re
from collections.abc import Iterable, Sequence

# gRPC refuses long status texts, and clients would read that as something else.
_LONGEST_WIRE_BYTES = 2000


class LatentryError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class BadRequest(LatentryError):
    """What was asked is not allowed; the message names what was given and what is allowed."""


class NotFound(LatentryError):
    """There is no such model, version, file or entry."""


class Busy(LatentryError):
    """The server's queue is full; the same request will do later."""

    exit_code = 75


class TimedOut(LatentryError):
    """No answer came within the time that the caller gave."""

    exit_code = 75


class Draining(LatentryError):
    """The server is shutting down and takes no new requests."""

    exit_code = 75


class ServerGone(LatentryError):
    """Nobody answers at the address, or the server died with the request open.

    Attributes:
        resume_at: For a broken stream, the index of the first sample that was not delivered.
    """

    exit_code = 75

    def __init__(self, message: str, *, resume_at: int | None = None) -> None:
        super().__init__(message)
        self.resume_at = resume_at


class ServerFault(LatentryError):
    """The server answered with a fault of its own; the message carries its text."""


class InvalidOutput(LatentryError):
    """The generator produced NaN or infinity; such an image is never delivered.

    Attributes:
        seeds: The seeds concerned; empty where the request carried latents instead of seeds.
    """

    def __init__(self, message: str, *, seeds: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.seeds = tuple(seeds)


class SpecError(LatentryError):
    """A generator's spec contradicts itself or uses something unknown."""


class CheckpointError(LatentryError):
    """A checkpoint folder is damaged or does not fit its architecture or spec."""


class ExportRefused(LatentryError):
    """An export failed one of its proofs; nothing was published."""


class EntryError(LatentryError):
    """A repository entry is damaged, half-written or not an entry."""


class ServeError(LatentryError):
    """The server could not be started or kept up."""


class JobError(LatentryError):
    """A job's folder is in use, damaged, or was started differently."""


class OutOfSpace(LatentryError):
    """The disk is full; the message names the file and the bytes that are missing."""

    exit_code = 75


def listed(items: Iterable[object], separator: str = ", ", *, most: int = 20) -> str:
    """Return the first ``most`` of ``items`` for a message, and how many more there are."""
    everything = list(items)
    shown = [str(item) for item in everything[:most]]
    if more := len(everything) - len(shown):
        shown.append(f"and {more:,} more")
    return separator.join(shown)


def wire_code(error: LatentryError) -> str:
    """Return the name of the gRPC status code under which a server answers with ``error``."""
    if isinstance(error, BadRequest):
        return "INVALID_ARGUMENT"
    if isinstance(error, NotFound):
        return "NOT_FOUND"
    return "UNAVAILABLE" if isinstance(error, Draining) else "INTERNAL"


def wire_text(error: LatentryError) -> str:
    """Return the text of an error as it travels: its code in brackets, then what it says.

    Triton sends the texts of a stream without a code; so the text itself carries it. At most 2,000
    bytes of UTF-8.
    """
    data = f"[{wire_code(error)}] {error}".encode(errors="replace")
    return data[:_LONGEST_WIRE_BYTES].decode(errors="ignore")


def is_wire_text(text: str) -> bool:
    """Whether ``text`` holds that of an error of ours as it travels, Triton's words before it."""
    return re.search(r"\[(INVALID_ARGUMENT|NOT_FOUND|INTERNAL|UNAVAILABLE)\] ", text) is not None
