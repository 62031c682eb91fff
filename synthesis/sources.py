"""Folders of pictures that go into a model: sample i of a job is made of file i.

Files go in the order of their paths. ``job.json`` pins the list of them, and a shard says of which
file each of its samples was made; so it is known of each whether it is still there and the same.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import features
from pydantic import Field

from latentry.contract.errors import BadRequest, JobError, listed
from latentry.contract.files import printable, read_regular
from latentry.contract.images import MOST_FILE_BYTES
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import GeneratorSpec
from latentry.contract.strict import Strict
from latentry.synthesis.sinks.sample import MOST_PATH, hash_name, picture_inputs

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_MOST_ENTRIES = 10_000_000
_SHOWN = 3
# Not the machine's trouble, which passes: such a file is bad, and stays so.
_FAULTS_OF_FILE = (errno.EACCES, errno.EPERM, errno.EFBIG)
_NO_FILE = -1

_Place = tuple[int, int]  # device and inode


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
        folder: The folder.
        sizes: Size in bytes by relative path, in the order of the paths; -1 for what is no regular
            file or cannot be looked at.
    """

    folder: Path
    sizes: Mapping[str, int]

    @cached_property
    def record(self) -> FolderRecord:
        """What is pinned."""
        digest = hashlib.sha256()
        for item in self.sizes.items():
            digest.update(json.dumps(item).encode() + b"\n")
        return FolderRecord(files=len(self.sizes), sha256=digest.hexdigest())


@dataclass(frozen=True)
class Pictures:
    """What some samples are made of.

    Attributes:
        rows: Rows [N, *row_shape] of each input that is a folder, by name; of a bad file zeros.
        facts: What the shard says of each sample: paths and SHA-256.
        faults: Of each sample why it cannot be drawn; empty for nothing.
    """

    rows: dict[str, NDArray[Any]]
    facts: list[dict[str, str]]
    faults: list[str]


class Folders:
    """The folders of a job, listed; of a job without any, no pictures for each sample."""

    def __init__(self, spec: GeneratorSpec, folders: Mapping[str, Path]) -> None:
        """List the folders, by the names of their inputs.

        Raises:
            BadRequest: One cannot be listed, holds what is no picture, or no files; or the names of
                two of them do not match.
        """
        self._items = [item for item in picture_inputs(spec) if item.name in folders]
        self._listings = {
            item.name: list_folder(item.name, folders[item.name]) for item in self._items
        }
        self._paths = _paired(self._listings)

    @property
    def records(self) -> dict[str, FolderRecord]:
        """What is pinned of each folder."""
        return {name: listing.record for name, listing in self._listings.items()}

    @property
    def names(self) -> list[str]:
        """The names of their inputs."""
        return [*self._listings]

    @property
    def count(self) -> int:
        """How many samples they make; 0 where there are no folders."""
        return min(map(len, self._paths.values()), default=0)

    @property
    def row_bytes(self) -> int:
        """What a sample's pictures take."""
        return sum(int(np.prod(item.row_shape)) for item in self._items)

    def paths(self, index: int) -> dict[str, str]:
        """Return the relative path of each folder's file for the sample with this index."""
        return {name: paths[index] for name, paths in self._paths.items() if index < len(paths)}

    def read(self, indices: Sequence[int]) -> Pictures:
        """Read what the samples with these indices are made of.

        Raises:
            JobError: A file was changed or removed since it was listed, or the machine failed.
        """
        rows = {
            item.name: np.zeros((len(indices), *item.row_shape), item.dtype) for item in self._items
        }
        facts: list[dict[str, str]] = []
        faults: list[str] = []
        for place, index in enumerate(indices):
            facts.append({})
            fault = ""
            for item in self._items:
                path = self._paths[item.name][index]
                try:
                    data = self._bytes(item.name, path)
                    rows[item.name][place] = _decoded(item, data)
                except _BadFile as error:
                    fault = fault or f"{shown_path(path)}: {error}"
                else:
                    facts[-1][item.name] = path
                    facts[-1][hash_name(item.name)] = hashlib.sha256(data).hexdigest()
            faults.append(fault)
        return Pictures(rows, facts, faults)

    def read_again(self, facts: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], str]:
        """Read what a shard says that a sample was made of.

        Returns:
            A row of each input; and what is not as it was, which is nothing for an equal picture.
        """
        rows = {}
        for item in self._items:
            path, sha256 = facts[item.name], facts[hash_name(item.name)]
            which = f"its {item.name} {shown_path(path)}"
            if path not in self._listings[item.name].sizes:
                return {}, f"{which} is no longer in the folder"
            try:
                data = self._bytes(item.name, path)
                if (found := hashlib.sha256(data).hexdigest()) != sha256:
                    return {}, (
                        f"{which} was changed since: the SHA-256 is {found}, then it was {sha256}"
                    )
                rows[item.name] = _decoded(item, data)
            except (_BadFile, JobError) as error:
                return {}, f"{which} cannot be used: {error}"
        return rows, ""

    def _bytes(self, name: str, path: str) -> bytes:
        listing = self._listings[name]
        size, where = listing.sizes[path], f"{listing.folder}/{shown_path(path)}"
        try:
            data = read_regular(listing.folder / path, most=MOST_FILE_BYTES)
        except OSError as error:
            if size == _NO_FILE or error.errno in _FAULTS_OF_FILE:
                raise _BadFile(f"{name} cannot be read: {error.strerror}") from error
            raise JobError(
                f"{where} cannot be read: {error.strerror}; it could be when the folder was "
                "listed. When that is mended, the same command goes on from here"
            ) from error
        if len(data) != size:
            raise JobError(
                f"{where} was changed since the folder was listed: it has {len(data):,} bytes "
                "now; put it back, or give another --out"
            )
        return data


class _BadFile(Exception):
    """A file of which no sample can be made; says why, in words that are the same each time."""


def _decoded(item: PixelsInput, data: bytes) -> NDArray[Any]:
    """Return a file's picture, [*row_shape]; raises _BadFile."""
    try:
        rows, _ = item.rows_from_value(data, most=1)
        item.check(rows)
    except BadRequest as error:
        if isinstance(error.__cause__, MemoryError):  # of the machine, not of the file
            raise error.__cause__ from None
        # What a library says of a damaged file may hold an address, which differs each time.
        fault = f"{item.name} is no picture that can be decoded" if error.__cause__ else str(error)
        raise _BadFile(fault) from error
    row: NDArray[Any] = rows[0]
    return row


def decoder_versions() -> dict[str, str]:
    """Return the versions of the libraries on which the pixels of a file depend."""
    jpeg = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    webp = features.version_module("webp")
    return {"pillow": version("Pillow"), "jpeg": str(jpeg), "webp": str(webp)}


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
    return Listing(folder, dict(sorted(sizes.items())))


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
                _check_path(name, folder, path, count)
                if not os.path.isdir(entry.path) if entry.is_symlink() else not entry.is_dir():
                    yield path, entry
                    continue
                if (place := _place(entry.stat())) in above:
                    where = f"{folder}/{shown_path(path)}"
                    raise BadRequest(f"{name}: {where} leads back to a folder above it")
                waiting.append((f"{path}/", (*above, place)))


def _check_path(name: str, folder: Path, path: str, count: int) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise BadRequest(f"{name}: {folder} holds {shown}, which is no UTF-8; rename it") from None
    if len(path) > MOST_PATH:
        raise BadRequest(
            f"{name}: {folder} holds {shown_path(path[:60])}..., over {MOST_PATH} characters"
        )
    if count > _MOST_ENTRIES:
        raise BadRequest(f"{name}: {folder} holds over {_MOST_ENTRIES:,} files")


def _place(state: os.stat_result) -> _Place:
    return state.st_dev, state.st_ino


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        state = entry.stat()
    except OSError:  # such as a link that leads nowhere
        return _NO_FILE
    return state.st_size if stat.S_ISREG(state.st_mode) else _NO_FILE


def _paired(listings: Mapping[str, Listing]) -> dict[str, Sequence[str]]:
    """Return the paths of each folder in the order of the first; raises BadRequest for no pairs."""
    if len(listings) < 2:
        return {name: tuple(listing.sizes) for name, listing in listings.items()}
    first, *others = [(name, _by_stem(name, listing)) for name, listing in listings.items()]
    for name, stems in others:
        for one, other in ((first, (name, stems)), ((name, stems), first)):
            if lone := next((path for stem, path in one[1].items() if stem not in other[1]), None):
                raise BadRequest(
                    f"{one[0]} has {shown_path(lone)} and {other[0]} no file of that name, but for "
                    "its suffix"
                )
    return {name: tuple(stems[stem] for stem in first[1]) for name, stems in (first, *others)}


def _by_stem(name: str, listing: Listing) -> dict[str, str]:
    """Return the paths of a folder by themselves without suffix, which tells pairs."""
    stems: dict[str, str] = {}
    for path in listing.sizes:
        stem = os.path.splitext(path)[0]
        if stem in stems:
            raise BadRequest(
                f"{name} has {shown_path(stems[stem])} and {shown_path(path)}; beside another "
                "folder, whose files are paired with them, they must differ by more than the suffix"
            )
        stems[stem] = path
    return stems


def first_moved(folders: Folders, made: Iterable[tuple[int, Mapping[str, Any]]]) -> str:
    """Return the first of the samples that the folders now have another file for, for people.

    Args:
        folders: The folders as they are.
        made: Index and facts of samples as shards hold them.
    """
    for index, facts in made:
        now = folders.paths(index)
        for name in folders.names:
            if facts.get(name) != now.get(name):
                before, found = shown_path(str(facts.get(name))), shown_path(now.get(name, "none"))
                return f"sample {index} was made of {name} {before}, which is {found} now"
    return ""


def shown_path(path: str) -> str:
    r"""Return a path as messages show it, in one line: control characters as ``\x1b``."""
    return printable(path).replace("\n", r"\x0a").replace("\t", r"\x09")
