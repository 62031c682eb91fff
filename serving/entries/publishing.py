"""Writing entries, whole or not at all, and removing them.

A version is written beside the repository, synced and renamed into place; its artefacts are never
rewritten. ``<name>/config.pbtxt`` follows from the newest version's files. Writers take turns.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    MODEL_JSON,
    RECORD_JSON,
    Build,
    ExportRecord,
    StoredModel,
)
from latentry.serving.entries.repository import (
    TEMPORARY_FOLDER,
    Entry,
    read_entry,
    version_folders,
)
from latentry.serving.entries.sealed import sealed_bytes
from latentry.serving.entries.triton_config import CONFIG_FILE, config_pbtxt, output_tensors
from latentry.serving.entries.verification import verify_entry


@dataclass(frozen=True)
class Draft:
    """A version to be published.

    Attributes:
        model: What draws the image.
        record: Where it came from.
        build: Its first build, that of FP32.
        files: The files of ``record``, by name.
        build_files: The files of ``build``, artefacts and others, by name.
    """

    model: StoredModel
    record: ExportRecord
    build: Build
    files: Mapping[str, bytes]
    build_files: Mapping[str, bytes]


def publish(repository: Path, name: str, draft: Draft) -> tuple[Entry, bool]:
    """Write a new version and return it with True; what is the newest already writes nothing.

    That is a version of the same digest whose FP32 build is of the same digest and proved for
    batches as large. A newest version that is damaged is followed by a new one.

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
        if newest and _is_published(newest, draft):
            write_config(repository, name)
            return newest, False
        if newest:
            _check_same_tensors(name, newest.spec, draft.model.content.spec)
        version = versions[-1] + 1 if versions else 1
        folder = repository / name / str(version)
        _write_version(folder, draft)
        write_config(repository, name)
        return Entry(name, version, folder, draft.model, draft.record, draft.build), True


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
        text = config_pbtxt(read_entry(newest))
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
        for folder in (_place(repository), repository):  # what killed writers left
            for left in folder.glob(f"{_prefix(repository)}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder(repository: Path) -> Iterator[Path]:
    """Give a folder on the repository's file system, beside it if possible, for a while."""
    folder = Path(tempfile.mkdtemp(prefix=_prefix(repository), dir=_place(repository)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(repository: Path) -> Path:
    """Return where temporary folders lie: beside the repository, or in it where it is a mount."""
    place = repository.resolve().parent
    if place.stat().st_dev != repository.stat().st_dev or not os.access(place, os.W_OK):
        return repository  # no Triton ever sees the repository itself
    return place


def _prefix(repository: Path) -> str:
    """Return how the names of this repository's temporary folders begin; neighbours have others."""
    return f"{TEMPORARY_FOLDER}{repository.resolve().name}-"


def _sound_entry(folder: Path) -> Entry | None:
    """Return the entry in ``folder``, or None where it is damaged."""
    try:
        entry = read_entry(folder)
        verify_entry(entry)
    except EntryError:
        return None
    return entry


def _is_published(newest: Entry, draft: Draft) -> bool:
    if newest.digest != draft.model.digest:
        return False
    base = read_entry(newest.folder, draft.build.name).build
    proved, wanted = (max(build.parity.batch_sizes) for build in (base, draft.build))
    return base.digest == draft.build.digest and proved >= wanted


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


def _write_version(folder: Path, draft: Draft) -> None:
    """Write ``draft`` so that ``folder`` either exists with all of it or does not exist."""
    beside = {MODEL_JSON: draft.model.text, RECORD_JSON: sealed_bytes(draft.record)}
    build = Path(BUILDS, draft.build.name)
    try:
        with temporary_folder(folder.parents[1]) as temporary:
            half = temporary / folder.name
            write_files(half, {**draft.files, **beside}, folder)
            write_build(half / build, draft.build, draft.build_files, folder / build)
            sync_folder(half / BUILDS)
            folder.parent.mkdir(exist_ok=True)
            publish_folder(half, folder)
            sync_folder(folder.parents[1])  # the model itself may be new
    except BaseException:
        with suppress(OSError):  # it holds other versions
            folder.parent.rmdir()
        raise


def write_build(half: Path, build: Build, files: Mapping[str, bytes], folder: Path) -> None:
    """Write a build into the new folder ``half``, which is to become ``folder``."""
    write_files(half, {**files, BUILD_JSON: sealed_bytes(build)}, folder)


def write_files(half: Path, files: Mapping[str, bytes], folder: Path) -> None:
    """Write files into the new folder ``half``, which is to become ``folder``; both are synced.

    Raises:
        OutOfSpace: The disk is full.
        OSError: The file system refused; it names a file of ``folder``.
    """
    half.mkdir(parents=True)
    for name, data in files.items():
        _write_file(half / name, data, folder / name)
    sync_folder(half)


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
