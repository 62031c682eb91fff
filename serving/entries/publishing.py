"""Writing entries, whole or not at all, and removing them.

A version is written beside the repository, synced and renamed into place; its artefacts are never
rewritten. ``<name>/config.pbtxt`` follows from the newest version's manifest. Writers take turns.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from latentry.contract.errors import EntryError, NotFound, OutOfSpace
from latentry.contract.files import (
    FULL,
    no_room,
    publish_folder,
    read_regular,
    sync_folder,
    write_atomic,
    write_new,
)
from latentry.contract.kinds.kind import TensorType, shown_shape
from latentry.contract.spec import GeneratorSpec, check_name
from latentry.serving.entries.manifest import MANIFEST_FILE, Manifest, manifest_bytes
from latentry.serving.entries.repository import (
    TEMPORARY_FOLDER,
    Entry,
    read_entry,
    version_folders,
)
from latentry.serving.entries.triton_config import CONFIG_FILE, config_pbtxt, output_tensors
from latentry.serving.entries.verification import verify_entry


def publish(
    repository: Path, name: str, manifest: Manifest, files: Mapping[str, bytes]
) -> tuple[Entry, bool]:
    """Write a new version and return it with True; the newest digest again writes nothing.

    A newest version that is damaged is followed by a new one.

    Raises:
        BadRequest: The name is not allowed.
        EntryError: The name's newest version has other inputs or outputs.
        OutOfSpace: The disk is full; nothing is left behind.
        OSError: The file system refused; nothing is left behind.
    """
    check_name(name)
    repository.mkdir(parents=True, exist_ok=True)
    with locked(repository):
        versions = sorted(int(folder.name) for folder in version_folders(repository, name))
        newest = _sound_entry(repository / name / str(versions[-1])) if versions else None
        if newest and newest.manifest.digest == manifest.digest:
            write_config(repository, name)
            return newest, False
        if newest:
            _check_same_tensors(name, newest.manifest.model.spec, manifest.model.spec)
        version = versions[-1] + 1 if versions else 1
        folder = repository / name / str(version)
        _write_folder(folder, {**files, MANIFEST_FILE: manifest_bytes(manifest)})
        write_config(repository, name)
        return Entry(name, version, folder, manifest), True


def remove_entry(repository: Path, name: str, version: int | None = None) -> list[Path]:
    """Delete a version, or the whole model; return the folders that went.

    Raises:
        NotFound: There is no such repository, model or version.
    """
    check_name(name)
    _versions_to_remove(repository, name, version)  # before anything has to be written
    with locked(repository), temporary_folder(repository) as trash:
        folders = _versions_to_remove(repository, name, version)
        for folder in folders:
            folder.rename(trash / folder.name)
        write_config(repository, name)
    return folders


def _versions_to_remove(repository: Path, name: str, version: int | None) -> list[Path]:
    everything = version_folders(repository, name)
    folders = [folder for folder in everything if version in (None, int(folder.name))]
    if not folders:
        what = name if version is None else f"{name} version {version}"
        raise NotFound(f"{what} is not in {repository}; `latentry models` lists what is")
    return folders


def write_config(repository: Path, name: str) -> None:
    """Make ``<name>/config.pbtxt`` follow the newest version; remove a model without any."""
    folder = repository / name
    versions = version_folders(repository, name)
    if not versions:
        shutil.rmtree(folder, ignore_errors=True)
        return
    newest = max(versions, key=lambda path: int(path.name))
    try:
        text = config_pbtxt(name, read_entry(newest).manifest)
    except EntryError:
        return  # damaged; whoever serves or lists it says so
    path = folder / CONFIG_FILE
    try:
        is_right = read_regular(path, most=len(text.encode())) == text.encode()
    except OSError:
        is_right = False
    if not is_right:
        with temporary_folder(folder.parent) as temporary:
            write_atomic(path, text.encode(), beside=temporary)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Let one writer at a time into the repository."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(repository: Path) -> Iterator[Path]:
    """Give a folder on the repository's file system, beside it if possible, for a while."""
    place = repository.resolve().parent
    if place.stat().st_dev != repository.stat().st_dev or not os.access(place, os.W_OK):
        place = repository  # a mount of its own; no Triton ever sees the repository itself
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_FOLDER, dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sound_entry(folder: Path) -> Entry | None:
    """Return the entry in ``folder``, or None where it is damaged."""
    try:
        entry = read_entry(folder)
        verify_entry(entry)
    except EntryError:
        return None
    return entry


def _check_same_tensors(name: str, old: GeneratorSpec, new: GeneratorSpec) -> None:
    if _tensors(old) != _tensors(new):
        raise EntryError(
            f"all versions of a name have the same tensors; {name} has {_tensors(old)}, this one "
            f"{_tensors(new)}; export it under another name with --name"
        )


def _tensors(spec: GeneratorSpec) -> str:
    """Return name, element type and a row's shape of all that goes in and comes out."""
    types = {"seed": TensorType(np.int64, (1,))} if spec.takes_seed else {}
    types |= {item.name: TensorType(item.dtype, item.row_shape) for item in spec.inputs}
    sides = (types, output_tensors(spec))
    return " -> ".join(
        ", ".join(
            f"{n} {np.dtype(kind.dtype)} {shown_shape(kind.row_shape)}" for n, kind in side.items()
        )
        for side in sides
    )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` so that ``folder`` either exists with all of them or does not exist."""
    try:
        with temporary_folder(folder.parents[1]) as temporary:
            half = temporary / folder.name
            half.mkdir()
            for name, data in files.items():
                _write_file(half / name, data, folder / name)
            folder.parent.mkdir(exist_ok=True)
            publish_folder(half, folder)
            sync_folder(folder.parents[1])  # the model itself may be new
    except BaseException:
        with suppress(OSError):  # it holds other versions
            folder.parent.rmdir()
        raise


def _write_file(half: Path, data: bytes, path: Path) -> None:
    """Write the file that is to become ``path``, by whose name its errors go."""
    try:
        write_new(half, data)
    except OSError as error:
        if error.errno in FULL:
            raise OutOfSpace(
                f"{no_room(path, len(data), error)}; nothing was published; free some and run the "
                "same command again"
            ) from error
        error.filename = os.fspath(path)
        raise
