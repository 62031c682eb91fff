"""WebDatasets of pictures: tar files, in which the files of a sample share the name before a dot.

See https://github.com/webdataset/webdataset.
"""

import errno
import glob
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationInfo, field_serializer, field_validator

from latentry.contract.errors import BadRequest, listed
from latentry.contract.files import open_regular
from latentry.contract.images import MOST_FILE_BYTES, SUFFIXES
from latentry.synthesis.sources.listing import (
    Listing,
    PictureFolder,
    check_path,
    shown_path,
)
from latentry.synthesis.sources.tar import members_of

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
        folder = str(context.get("folder", ""))
        path = Path(folder) / value
        if not path.exists():  # a pattern, if anything
            path = Path(glob.escape(folder)) / value
        if not context.get("recorded") and not path.exists() and not glob.glob(str(path)):
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
        chosen: dict[str, str] = {}  # by key; empty where a sample has none yet
        count = 0
        for tar in _tar_files(name, self.webdataset):
            for path, place in _files_in(name, tar, count):
                count += 1
                other = chosen.setdefault(_key(path), "")
                if not self._is_wanted(path):
                    continue
                if other:
                    raise BadRequest(_several(name, other, path))
                chosen[_key(path)] = path
                places[path] = place
        if bare := [key for key, found in chosen.items() if not found]:
            what = self.extension or f"picture ({', '.join(SUFFIXES)})"
            shown = listed(map(shown_path, sorted(bare)), most=_SHOWN)
            raise BadRequest(f"{name}: there is no {what} in the samples {shown}")
        if not places:
            raise BadRequest(f"{name}: {shown_path(str(self.webdataset))} holds no files")
        return Listing(
            where=shown_path(os.path.dirname(next(iter(places.values())).tar)),
            sizes={path: places[path].size for path in sorted(places)},
            read=partial(_read, places),
            stem=_key,
        )

    def _is_wanted(self, path: str) -> bool:
        extension = path.removeprefix(_key(path) + ".")
        if self.extension is not None:
            return extension.lower() == self.extension.lower()
        return os.path.splitext(path)[1].lower() in SUFFIXES


class _Place(NamedTuple):
    tar: Path
    offset: int
    size: int


def _tar_files(name: str, path: Path) -> list[Path]:
    """Return the tar files that a path means, in the order of their names, which are different."""
    if path.is_dir():
        with os.scandir(path) as entries:
            found = sorted(path / e.name for e in entries if not e.name.startswith("."))
        if odd := [shown_path(one.name) for one in found if one.suffix.lower() != ".tar"]:
            raise BadRequest(
                f"{name}: {shown_path(str(path))} holds {listed(odd, most=_SHOWN)}, which are no "
                ".tar files; unpack what is compressed, or give a pattern such as photos/*.tar"
            )
    else:
        found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))
    for one, other in zip(sorted(found, key=_name), sorted(found, key=_name)[1:], strict=False):
        if one.name == other.name:
            raise BadRequest(
                f"{name}: {shown_path(str(one))} and {shown_path(str(other))} have one name, by "
                "which samples are told apart; rename one"
            )
    return found


def _name(path: Path) -> str:
    return path.name


def _files_in(name: str, tar: Path, count: int) -> Iterator[tuple[str, _Place]]:
    """Yield path and place of the files in a tar file; ``count`` files came before it."""
    try:
        with open_regular(tar) as file:
            for member in members_of(file):
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                path, count = "/".join([tar.name, *parts]), count + 1
                check_path(name, shown_path(str(tar.parent)), path, count)
                if ".." in parts or not (member.is_file or member.is_folder):
                    raise BadRequest(
                        f"{name}: {shown_path(str(tar))} holds {shown_path(member.name)}, which is "
                        "no plain file"
                    )
                if member.is_file and not any(part.startswith(".") for part in parts):
                    yield path, _Place(tar, member.offset, member.size)
    except (OSError, ValueError) as error:
        fault = error.strerror if isinstance(error, OSError) else error
        raise BadRequest(
            f"{name}: {shown_path(str(tar))} cannot be read as a tar file: {fault}; a compressed "
            "one has to be unpacked"
        ) from error


def _key(path: str) -> str:
    """Return what the files of one sample share: all before the first dot of the last part."""
    folder, slash, file = path.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _several(name: str, one: str, other: str) -> str:
    if one == other:
        return f"{name}: {shown_path(one)} is there twice"
    endings = sorted(shown_path(path.removeprefix(_key(path) + ".")) for path in (one, other))
    return (
        f"{name}: a sample has {shown_path(one)} and {shown_path(other)}; say which with "
        f"extension, one of {listed(endings)}"
    )


def _read(places: dict[str, _Place], path: str) -> bytes:
    place = places[path]
    if place.size > MOST_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {MOST_FILE_BYTES:,} bytes", path)
    with open_regular(place.tar) as file:
        file.seek(place.offset)
        return file.read(place.size)
