"""The pictures that go into a model: sample i of a job is made of file i.

Files go in the order of their paths. ``job.json`` pins the list of them, and a shard says of which
file each of its samples was made; so it is known of each whether it is still there and the same.
"""

import errno
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import features

from latentry.contract.errors import BadRequest, JobError
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import check_sizes
from latentry.synthesis.sinks.facts import hash_name, path_name, picture_inputs
from latentry.synthesis.sources.listing import (
    NO_FILE,
    FolderRecord,
    Listing,
    PictureFolder,
    shown_path,
)

# Not the machine's trouble, which passes: such a file is bad, and stays so.
_FAULTS_OF_FILE = (errno.EACCES, errno.EPERM, errno.EFBIG)


PictureRows = dict[str, NDArray[Any]]
"""The pictures that one sample is made of, [*row_shape] each, by the names of their inputs."""


@dataclass(frozen=True)
class Pictures:
    """What some samples are made of.

    Attributes:
        rows: Of each sample the row of each input that is a folder, by name; without bad files.
        facts: What the shard says of each sample: paths and SHA-256.
        faults: Of each sample why it cannot be drawn; empty for nothing.
    """

    rows: list[PictureRows]
    facts: list[dict[str, str]]
    faults: list[str]


class Folders:
    """The folders of a job, listed; of a job without any, no pictures for each sample."""

    def __init__(self, spec: GeneratorSpec, folders: Mapping[str, PictureFolder]) -> None:
        """List the folders, by the names of their inputs.

        Raises:
            BadRequest: One cannot be listed, holds what is no picture, or no files; or the names of
                two of them do not match.
        """
        self._spec = spec
        self._items = [item for item in picture_inputs(spec) if item.name in folders]
        self._listings = {
            item.name: folders[item.name].list_files(item.name) for item in self._items
        }
        self._resize = {name: folder.resize for name, folder in folders.items()}
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
        """What a sample's pictures take, at most."""
        return largest_bytes(self._spec, self.names)

    def paths(self, index: int) -> dict[str, str]:
        """Return the relative path of each folder's file for the sample with this index."""
        return {name: paths[index] for name, paths in self._paths.items() if index < len(paths)}

    def read(self, indices: Sequence[int]) -> Pictures:
        """Read what the samples with these indices are made of.

        Raises:
            JobError: A file was changed or removed since it was listed, or the machine failed.
        """
        found = [self._read_one(index) for index in indices]
        rows, facts, faults = zip(*found, strict=True) if found else ((), (), ())
        return Pictures([*rows], [*facts], [*faults])

    def _read_one(self, index: int) -> tuple[PictureRows, dict[str, str], str]:
        """Return the pictures of the sample with this index, what is said of it, and its fault."""
        rows: PictureRows = {}
        facts: dict[str, str] = {}
        fault = ""
        for item in self._items:
            path = self._paths[item.name][index]
            try:
                data = self._bytes(item.name, path)
                rows[item.name] = self._decoded(item, data)
            except _BadFile as error:
                fault = fault or f"{shown_path(path)}: {error}"
            else:
                facts[path_name(item.name)] = path
                facts[hash_name(item.name)] = hashlib.sha256(data).hexdigest()
        if not fault and (misfit := self._misfit(rows)):
            fault = f"{shown_path(next(iter(facts.values())))}: {misfit}"
        return rows, facts, fault

    def _misfit(self, rows: PictureRows) -> str:
        """Return why pictures of these sizes do not go together; empty where they do."""
        try:
            check_sizes(self._spec, {name: row[None] for name, row in rows.items()})
        except BadRequest as error:
            return str(error)
        return ""

    def read_again(self, facts: Mapping[str, Any]) -> tuple[PictureRows, str]:
        """Read what a shard says that a sample was made of.

        Returns:
            A row of each input; and what is not as it was, which is nothing for an equal picture.
        """
        rows = {}
        for item in self._items:
            path, sha256 = facts[path_name(item.name)], facts[hash_name(item.name)]
            which = f"its {item.name} {shown_path(path)}"
            if path not in self._listings[item.name].sizes:
                return {}, f"{which} is no longer in the folder"
            try:
                data = self._bytes(item.name, path)
                if (found := hashlib.sha256(data).hexdigest()) != sha256:
                    return {}, (
                        f"{which} was changed since: the SHA-256 is {found}, then it was {sha256}"
                    )
                rows[item.name] = self._decoded(item, data)
            except (_BadFile, JobError) as error:
                return {}, f"{which} cannot be used: {error}"
        return rows, ""

    def _bytes(self, name: str, path: str) -> bytes:
        listing = self._listings[name]
        size, where = listing.sizes[path], f"{listing.where}/{shown_path(path)}"
        try:
            data = listing.read(path)
        except OSError as error:
            if size == NO_FILE or error.errno in _FAULTS_OF_FILE:
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

    def _decoded(self, item: PixelsInput, data: bytes) -> NDArray[Any]:
        """Return a file's picture, [*row_shape]; raises _BadFile."""
        try:
            is_scaled = self._resize[item.name]
            rows, _ = (item.resized_rows if is_scaled else item.rows_from_value)(data, most=1)
            item.check(rows)
        except BadRequest as error:
            if isinstance(error.__cause__, MemoryError):  # of the machine, not of the file
                raise error.__cause__ from None
            # What a library says of a damaged file may hold an address, which differs each time.
            fault = (
                f"{item.name} is no picture that can be decoded" if error.__cause__ else str(error)
            )
            raise _BadFile(fault) from error
        row: NDArray[Any] = rows[0]
        return row


class _BadFile(Exception):
    """A file of which no sample can be made; says why, in words that are the same each time."""


def decoder_versions() -> dict[str, str]:
    """Return the versions of the libraries on which the pixels of a file depend."""
    jpeg = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    webp = features.version_module("webp")
    return {"pillow": version("Pillow"), "jpeg": str(jpeg), "webp": str(webp)}


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
        stem = listing.stem(path)
        if stem in stems:
            raise BadRequest(
                f"{name} has {shown_path(stems[stem])} and {shown_path(path)}; beside another "
                "folder, whose files are paired with them, they must differ by more than the suffix"
            )
        stems[stem] = path
    return stems


def largest_bytes(spec: GeneratorSpec, names: Collection[str]) -> int:
    """Return what the pictures of one sample take, at most, that go into the inputs ``names``."""
    items = [item for item in picture_inputs(spec) if item.name in names]
    return sum(math.prod(item.largest_row_shape) for item in items)


def groups_of_one_size(rows: Sequence[PictureRows]) -> list[list[int]]:
    """Return the places of samples whose pictures have equal sizes, which one request may hold."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(tuple(picture.shape for picture in row.values()), []).append(place)
    return [*groups.values()]


def stacked(rows: Sequence[PictureRows]) -> PictureRows:
    """Return the pictures of samples of one size, [N, *row_shape] each."""
    return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def first_moved(folders: Folders, made: Iterable[tuple[int, Mapping[str, Any]]]) -> str:
    """Return the first of the samples that the folders now have another file for, for people.

    Args:
        folders: The folders as they are.
        made: Index and facts of samples as shards hold them.
    """
    for index, facts in made:
        now = folders.paths(index)
        for name in folders.names:
            if (then := facts.get(path_name(name))) != now.get(name):
                before, found = shown_path(str(then)), shown_path(now.get(name, "none"))
                return f"sample {index} was made of {name} {before}, which is {found} now"
    return ""
