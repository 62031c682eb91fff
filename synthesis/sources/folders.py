"""Folders of pictures."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationInfo, field_serializer, field_validator

from latentry.contract.errors import BadRequest, listed
from latentry.contract.files import read_regular
from latentry.contract.images import MOST_FILE_BYTES, SUFFIXES
from latentry.synthesis.sources.listing import (
    NO_FILE,
    Listing,
    PictureFolder,
    check_path,
    shown_path,
)

_SHOWN = 3

_Place = tuple[int, int]  # device and inode


class Folder(PictureFolder):
    """A folder of pictures, one for each sample."""

    folder: Path

    @field_validator("folder")
    @classmethod
    def _is_there(cls, value: Path, info: ValidationInfo) -> Path:
        context = info.context or {}
        path = Path(context.get("folder", "")) / value
        if not context.get("recorded") and not path.is_dir():
            raise ValueError(f"{path} is no folder; give the path of a folder of pictures")
        return path

    @field_serializer("folder")
    def _nowhere(self, value: Path) -> str:
        return ""  # where it lies is this machine's affair; what is in it goes with the job

    def list_files(self, name: str) -> Listing:
        """Return the files in the folder and below; errors as of the base class."""
        return list_folder(name, self.folder)


def list_folder(name: str, folder: Path) -> Listing:
    """Return the files in ``folder`` and below, for the input ``name``.

    Hidden files and folders are left out; links are followed.

    Raises:
        BadRequest: It cannot be read, holds nothing, or something that is called no picture.
    """
    sizes: dict[str, int] = {}
    odd: list[str] = []
    try:
        for path, entry in _files_below(name, folder):
            if os.path.splitext(path)[1].lower() not in SUFFIXES:
                odd.append(path)
            sizes[path] = _size(entry)
    except OSError as error:
        where = shown_path(str(error.filename))
        raise BadRequest(f"{name}: {where} cannot be read: {error.strerror}") from error
    if odd:
        shown = listed(map(shown_path, sorted(odd)), most=_SHOWN)
        raise BadRequest(
            f"{name}: {folder} holds {shown}; files of pictures end in {', '.join(SUFFIXES)}. Take "
            "others out, or let their names begin with a dot"
        )
    if not sizes:
        raise BadRequest(f"{name}: {folder} holds no files that end in {', '.join(SUFFIXES)}")
    return Listing(
        where=str(folder),
        sizes=dict(sorted(sizes.items())),
        read=lambda path: read_regular(folder / path, most=MOST_FILE_BYTES),
        stem=lambda path: os.path.splitext(path)[0],
    )


def _files_below(name: str, folder: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield the relative path of every file below a folder, and its entry."""
    waiting: list[tuple[str, tuple[_Place, ...]]] = [("", (_place(os.stat(folder)),))]
    count = 0
    while waiting:
        below, above = waiting.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path, count = below + entry.name, count + 1
                check_path(name, folder, path, count)
                if not os.path.isdir(entry.path) if entry.is_symlink() else not entry.is_dir():
                    yield path, entry
                    continue
                if (place := _place(entry.stat())) in above:
                    where = f"{folder}/{shown_path(path)}"
                    raise BadRequest(f"{name}: {where} leads back to a folder above it")
                waiting.append((f"{path}/", (*above, place)))


def _place(state: os.stat_result) -> _Place:
    return state.st_dev, state.st_ino


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        state = entry.stat()
    except OSError:  # such as a link that leads nowhere
        return NO_FILE
    return state.st_size if stat.S_ISREG(state.st_mode) else NO_FILE
