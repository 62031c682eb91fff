"""The model repository: entries ``<repository>/<name>/<version>/``, written whole or not at all.

A version is written beside the repository, synced and renamed into place; its artefacts are never
rewritten. ``<name>/config.pbtxt`` follows from the newest version's manifest.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from latentry.contract.errors import BadRequest, EntryError, LatentryError, NotFound
from latentry.contract.files import open_regular, read_regular
from latentry.contract.spec import GeneratorSpec, check_name
from latentry.contract.strict import explain
from latentry.contract.wire import STREAM_MODEL
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    ServingPart,
    manifest_bytes,
    read_manifest,
)
from latentry.serving.entries.triton_config import config_pbtxt

TEMPORARY_FOLDER = ".latentry-tmp"
CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.py"
MODEL_PY = b'''"""Serves this entry; the same three lines for every generator."""

from latentry.serving.triton.front_model import FrontModel as TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class Entry:
    """One version of one model, with its manifest read and sealed."""

    name: str
    version: int
    folder: Path
    manifest: Manifest


def list_entries(repository: Path) -> tuple[list[Entry], dict[Path, LatentryError]]:
    """Return every entry, by name and version, and an error for each folder that cannot be read.

    Models none of whose versions has a ``latentry.json`` are none of ours and are left out
    (:func:`list_strays`).

    Raises:
        NotFound: ``repository`` is no folder.
    """
    entries: list[Entry] = []
    errors: dict[Path, LatentryError] = {}
    for folder in _version_folders(repository):
        try:
            entries.append(_read_entry(folder))
        except LatentryError as error:
            errors[folder] = error
    entries.sort(key=lambda entry: (entry.name, entry.version))
    return entries, errors


def list_strays(repository: Path) -> list[Path]:
    """Return what lies in ``repository`` and is neither a model of ours nor the stream model."""
    known = {folder.parent for folder in _version_folders(repository)}
    known |= {repository / STREAM_MODEL, repository / TEMPORARY_FOLDER}
    return sorted(path for path in repository.iterdir() if path not in known)


def newest_entries(repository: Path, names: tuple[str, ...] = ()) -> list[Entry]:
    """Return the newest version of every model, or of ``names`` only.

    Raises:
        NotFound: A name is not there, or there is nothing at all.
        EntryError: Something there is damaged; all of it is listed.
    """
    newest = {}
    for folder in sorted(_version_folders(repository), key=lambda path: int(path.name)):
        newest[folder.parent.name] = folder
    if not newest:
        raise NotFound(f"{repository} holds no entry; run `latentry export CHECKPOINT` first")
    if missing := [name for name in names if name not in newest]:
        raise NotFound(f"{', '.join(missing)} is not in {repository}; there: {', '.join(newest)}")
    entries, errors = [], []
    for name in sorted(set(names) or newest):
        try:
            entries.append(_read_entry(newest[name]))
        except LatentryError as error:
            errors.append(str(error))
    if errors:
        raise EntryError("\n".join(errors))
    return entries


def verify_entry(entry: Entry) -> None:
    """Compare every file of ``entry`` with the manifest.

    Raises:
        EntryError: Naming every file that is missing, was changed (with both hashes), or does not
            belong there.
    """
    records = entry.manifest.files()
    problems = [
        problem
        for name, record in records.items()
        if (problem := _file_problem(entry.folder / name, record))
    ]
    if not problems:
        try:
            read_goldens(entry.folder, entry.manifest)
        except EntryError as error:
            problems.append(str(error))
    present = {path.name for path in entry.folder.iterdir()}
    strays = [
        f"{entry.folder / name} does not belong to the entry; {_advice(name)}"
        for name in sorted(present - set(records) - {MANIFEST_FILE})
    ]
    if problems:
        strays.append(f"export {entry.name} again, or `latentry models remove` it")
    if problems or strays:
        raise EntryError("\n".join(problems + strays))


def _file_problem(path: Path, record: FileRecord) -> str:
    """Return what is wrong with a file of an entry; empty for nothing."""
    if not os.path.lexists(path):
        return f"{path} is missing"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size:
                return (
                    f"{path} was changed: it has {size:,} bytes, the manifest says {record.size:,}"
                )
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if found != record.sha256:
        return f"{path} was changed: its SHA-256 is {found}, the manifest says {record.sha256}"
    return ""


def _advice(name: str) -> str:
    if name.startswith(".nfs"):
        return "some process has it open; it goes when that ends"
    return "delete it"


def publish(
    repository: Path, name: str, manifest: Manifest, files: Mapping[str, bytes]
) -> tuple[Entry, bool]:
    """Write a new version and return it with True; the newest digest again writes nothing.

    A newest version that is damaged is followed by a new one.

    Raises:
        BadRequest: The name is not allowed.
        EntryError: The name's newest version has other inputs or outputs.
        OSError: The file system refused; nothing is left behind.
    """
    if check_name(name) == STREAM_MODEL:
        raise BadRequest(f"{STREAM_MODEL} is the streaming model's own name; choose another")
    repository.mkdir(parents=True, exist_ok=True)
    with _locked(repository):
        versions = sorted(int(folder.name) for folder in _version_folders(repository, name))
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
        NotFound: There is no such model or version.
    """
    check_name(name)
    everything = _version_folders(repository, name)
    folders = [folder for folder in everything if version in (None, int(folder.name))]
    if not folders:
        what = name if version is None else f"{name} version {version}"
        raise NotFound(f"{what} is not in {repository}; `latentry models` lists what is")
    with _locked(repository), _temporary_folder(repository) as trash:
        for folder in folders:
            folder.rename(trash / folder.name)
        write_config(repository, name)
    return folders


def with_serving(entry: Entry, changes: Mapping[str, int]) -> Entry:
    """Return ``entry`` with some fields of its ``serving`` part changed; nothing is written.

    Raises:
        BadRequest: A value is not allowed, or the export did not prove batches of that size.
    """
    serving = entry.manifest.serving
    try:
        changed = ServingPart.model_validate({**serving.model_dump(), **changes})
    except ValidationError as error:
        raise BadRequest(f"{entry.name} cannot be served so: {explain(error)}") from error
    proved = most_proved_batch(entry)
    if changed.max_batch_size > max(proved, serving.max_batch_size):
        raise BadRequest(
            f"max_batch_size {changed.max_batch_size} is more than the export of {entry.name} "
            f"proved ({proved}); export it again with --max-batch {changed.max_batch_size}"
        )
    manifest = entry.manifest.model_copy(update={"serving": changed})
    return Entry(entry.name, entry.version, entry.folder, manifest)


def most_proved_batch(entry: Entry) -> int:
    """Return the largest batch up to which the export proved that rows do not depend on it."""
    return max(entry.manifest.record.parity.batch_sizes)


def tune_entry(
    repository: Path, name: str, changes: Mapping[str, int], *, model_digest: str
) -> Entry:
    """Change the ``serving`` part of the newest version; return the entry as it is now.

    The model digest, every image and every running server stay as they are: a server takes the new
    values at its next start. The manifest is replaced whole, and ``config.pbtxt`` follows it.

    Args:
        repository: The model repository.
        name: The model.
        changes: Fields of :class:`latentry.serving.entries.manifest.ServingPart`.
        model_digest: What the values were measured with.

    Raises:
        NotFound: There is no such model.
        BadRequest: The newest version has another digest, or a value is not allowed.
        EntryError: The newest version is damaged.
    """
    check_name(name)
    _version_folders(repository)
    with _locked(repository):
        (entry,) = newest_entries(repository, (name,))
        if entry.manifest.digest != model_digest:
            raise BadRequest(
                f"{name} version {entry.version} has model digest {entry.manifest.digest[:12]}, "
                f"the values were measured with {model_digest[:12]}; profile this version"
            )
        tuned = with_serving(entry, changes)
        with _temporary_folder(repository) as temporary:
            new = temporary / MANIFEST_FILE
            _write_file(new, manifest_bytes(tuned.manifest))
            new.rename(entry.folder / MANIFEST_FILE)
        _sync_folder(entry.folder)
        write_config(repository, name)
    return tuned


def write_config(repository: Path, name: str) -> None:
    """Make ``<name>/config.pbtxt`` follow the newest version; remove a model without any."""
    folder = repository / name
    versions = _version_folders(repository, name)
    if not versions:
        shutil.rmtree(folder, ignore_errors=True)
        return
    newest = max(versions, key=lambda path: int(path.name))
    try:
        text = config_pbtxt(name, _read_entry(newest).manifest)
    except EntryError:
        return  # damaged; whoever serves or lists it says so
    path = folder / CONFIG_FILE
    try:
        is_right = read_regular(path, most=len(text.encode())) == text.encode()
    except OSError:
        is_right = False
    if not is_right:
        with _temporary_folder(folder.parent) as temporary:
            (temporary / CONFIG_FILE).write_text(text)
            (temporary / CONFIG_FILE).rename(path)


def _version_folders(repository: Path, name: str = "*") -> list[Path]:
    if not repository.is_dir():
        raise NotFound(f"{repository} is no folder; give the model repository with --repository")
    folders = [
        path
        for path in repository.glob(f"{name}/*")
        if path.name.isdecimal() and path.is_dir() and path.parent.name != STREAM_MODEL
    ]
    ours = {path.parent for path in folders if (path / MANIFEST_FILE).exists()}
    return sorted(path for path in folders if path.parent in ours)


def _sound_entry(folder: Path) -> Entry | None:
    """Return the entry in ``folder``, or None where it is damaged."""
    try:
        entry = _read_entry(folder)
        verify_entry(entry)
    except EntryError:
        return None
    return entry


def _read_entry(folder: Path) -> Entry:
    name = check_name(folder.parent.name)
    return Entry(name, int(folder.name), folder, read_manifest(folder))


def _check_same_tensors(name: str, old: GeneratorSpec, new: GeneratorSpec) -> None:
    def tensors(spec: GeneratorSpec) -> dict[str, tuple[int, ...]]:
        shapes = {str(item.role): item.row_shape for item in spec.inputs}
        return {**shapes, "image": spec.image.row_shape}

    if tensors(old) != tensors(new):
        raise EntryError(
            f"all versions of a name have the same tensors; {name} has {tensors(old)}, this one "
            f"{tensors(new)}; export it under another name with --name"
        )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` so that ``folder`` either exists with all of them or does not exist."""
    try:
        with _temporary_folder(folder.parents[1]) as temporary:
            half = temporary / folder.name
            half.mkdir()
            for name, data in files.items():
                _write_file(half / name, data)
            _sync_folder(half)
            folder.parent.mkdir(exist_ok=True)
            half.rename(folder)
            _sync_folder(folder.parent)
    except BaseException:
        with suppress(OSError):  # it holds other versions
            folder.parent.rmdir()
        raise


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """Let one writer at a time into the repository."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _temporary_folder(repository: Path) -> Iterator[Path]:
    """Give a folder on the repository's file system, beside it if possible, for a while."""
    place = repository.resolve().parent
    if place.stat().st_dev != repository.stat().st_dev or not os.access(place, os.W_OK):
        place = repository  # a mount of its own; no Triton ever sees the repository itself
    parent = place / TEMPORARY_FOLDER
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another writer is using it
            parent.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
