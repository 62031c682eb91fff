"""The list of a folder's pictures, whatever holds the folder."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field

from latentry.contract.errors import BadRequest
from latentry.contract.files import printable
from latentry.contract.seeds import MAX_SEED
from latentry.contract.strict import Strict
from latentry.synthesis.sinks.facts import MOST_PATH

MOST_ENTRIES = 10_000_000
NO_FILE = -1


class FolderRecord(Strict):
    """What ``job.json`` pins of a folder.

    Attributes:
        files: Number of its files.
        sha256: Of their list: a line ``["relative/path.png", 12345]`` for each, path and size in
            bytes as JSON, in the order of the paths.
    """

    files: Annotated[int, Field(ge=1, le=MAX_SEED)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        where: The folder, for people.
        sizes: Size in bytes by relative path, in the order of the paths; -1 for what is no regular
            file or cannot be looked at.
        read: Returns the bytes of the file with a path; raises OSError.
        stem: Returns a path without what files of different kinds of one sample differ by.
    """

    where: str
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    stem: Callable[[str], str]

    @cached_property
    def record(self) -> FolderRecord:
        """What is pinned."""
        digest = hashlib.sha256()
        for item in self.sizes.items():
            digest.update(json.dumps(item).encode() + b"\n")
        return FolderRecord(files=len(self.sizes), sha256=digest.hexdigest())


class PictureFolder(Strict, ABC):
    """What a job's file says of where an input's pictures lie, one for each sample.

    Attributes:
        resize: Whether those of another size than the model takes are scaled; else they are bad.
    """

    resize: bool = False

    @abstractmethod
    def list_files(self, name: str) -> Listing:
        """Return the files for the input ``name``.

        Raises:
            BadRequest: They cannot be listed, are none, or are something else than pictures.
        """


def check_path(name: str, folder: object, path: str, count: int) -> None:
    """Refuse a path that a shard cannot hold, and more than a job can take.

    Raises:
        BadRequest: The path of the ``count``-th file of ``folder`` is no UTF-8 or too long, or
            there are too many.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = shown_path(os.fsencode(path).decode(errors="backslashreplace"))
        raise BadRequest(f"{name}: {folder} holds {shown}, which is no UTF-8; rename it") from None
    if len(path) > MOST_PATH:
        raise BadRequest(
            f"{name}: {folder} holds {shown_path(path[:60])}..., over {MOST_PATH} characters"
        )
    if count > MOST_ENTRIES:
        raise BadRequest(f"{name}: {folder} holds over {MOST_ENTRIES:,} files")


def shown_path(path: str) -> str:
    r"""Return a path as messages show it, in one line: control characters as ``\x1b``."""
    return printable(path).replace("\n", r"\x0a").replace("\t", r"\x09")
