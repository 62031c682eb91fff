"""WebDatasets of pictures: tar files, in which the files of a sample share the name before a dot.

See https://github.com/webdataset/webdataset.
"""

import errno
import glob
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationInfo, field_serializer, field_validator

from latentry.contract.errors import BadRequest, listed
from latentry.contract.files import open_regular
from latentry.contract.images import MOST_FILE_BYTES
from latentry.synthesis.sources.listing import (
    SUFFIXES,
    Listing,
    PictureFolder,
    check_path,
    shown_path,
)

# Of a tar file's headers; a longer one is no name that anybody gave.
_MOST_HEADER_BYTES = 2**20
_SHOWN = 3


class WebDataset(PictureFolder):
    """Tar files with a picture for each sample.

    Attributes:
        webdataset: A tar file, a folder of them, or a pattern of them such as ``train-*.tar``.
        extension: Which file of a sample, such as ``jpg`` or ``photo.png``: all that follows the
            first dot of its name. None for its only picture.
    """

    webdataset: Path
    extension: str | None = None

    @field_validator("webdataset")
    @classmethod
    def _is_there(cls, value: Path, info: ValidationInfo) -> Path:
        context = info.context or {}
        path = Path(context.get("folder", "")) / value
        if not context.get("recorded") and not _tar_files(path):
            raise ValueError(
                f"{path} is no tar file and no folder or pattern of some; give a path such as "
                "photos, photos.tar or photos/train-*.tar"
            )
        return path

    @field_validator("extension")
    @classmethod
    def _has_no_dot_before(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith(".") or "/" in value):
            raise ValueError(f"{value!r} is none; give it without the dot before it, such as jpg")
        return value

    @field_serializer("webdataset")
    def _nowhere(self, value: Path) -> str:
        return ""  # where it lies is this machine's affair; what is in it goes with the job

    def list_files(self, name: str) -> Listing:
        """Return the pictures, as ``NAME.tar/KEY.EXTENSION``; errors as of the base class."""
        places: dict[str, _Place] = {}
        keys: dict[str, list[str]] = {}
        count = 0
        for tar in _tar_files(self.webdataset):
            for member in _members(name, tar):
                path, count = f"{tar.name}/{member.name}", count + 1
                check_path(name, self.webdataset, path, count)
                found = keys.setdefault(_key(path), [])
                if not self._is_wanted(path):
                    continue
                found.append(path)
                if len(found) > 1:
                    raise BadRequest(_several(name, found))
                places[path] = _Place(tar, member.offset_data, member.size)
        if bare := [key for key, found in keys.items() if not found]:
            what = self.extension or f"picture ({', '.join(SUFFIXES)})"
            shown = listed(map(shown_path, sorted(bare)), most=_SHOWN)
            raise BadRequest(f"{name}: there is no {what} in the samples {shown}")
        if not places:
            raise BadRequest(f"{name}: {self.webdataset} holds no files")
        return Listing(
            where=str(self.webdataset),
            sizes={path: places[path].size for path in sorted(places)},
            read=partial(_read, places),
            stem=_key,
        )

    def _is_wanted(self, path: str) -> bool:
        extension = path.removeprefix(_key(path) + ".")
        if self.extension is not None:
            return extension == self.extension
        return os.path.splitext(path)[1].lower() in SUFFIXES


class _Place(NamedTuple):
    tar: Path
    offset: int
    size: int


class _SmallReads:
    """A file that gives little at a time: of a hostile tar file, a header may name any length."""

    def __init__(self, file: "os.PathLike[str]") -> None:
        self._file = open_regular(file)
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.name = os.fspath(file)

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _tar_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    pattern = f"{glob.escape(str(path))}/*.tar" if path.is_dir() else str(path)
    return sorted(Path(found) for found in glob.glob(pattern) if os.path.isfile(found))


def _members(name: str, tar: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar file."""
    try:
        file = _SmallReads(tar)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as members:  # type: ignore[call-overload]
                while member := members.next():
                    members.members = []  # it would keep them all
                    if member.isdir() or os.path.basename(member.name).startswith("."):
                        continue
                    if not member.isreg() or member.issparse():
                        raise BadRequest(
                            f"{name}: {tar} holds {shown_path(member.name)}, which is no plain file"
                        )
                    yield member
        finally:
            file.close()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise BadRequest(
            f"{name}: {tar} cannot be read as a tar file: {error}; a compressed one has to be "
            "unpacked"
        ) from error


def _key(path: str) -> str:
    """Return what the files of one sample share: all before the first dot of the last part."""
    folder, slash, file = path.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _several(name: str, found: list[str]) -> str:
    first, second = map(shown_path, found)
    if first == second:
        return f"{name}: {first} is there twice"
    endings = listed(sorted(path.removeprefix(_key(path) + ".") for path in found))
    return f"{name}: a sample has {first} and {second}; say which with extension, one of {endings}"


def _read(places: dict[str, _Place], path: str) -> bytes:
    place = places[path]
    if place.size > MOST_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_FILE_BYTES:,} bytes", path)
    with open_regular(place.tar) as file:
        file.seek(place.offset)
        return file.read(place.size)
