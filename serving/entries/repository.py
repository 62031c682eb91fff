"""The model repository: entries ``<repository>/<name>/<version>/``, and which of them there are.

They are written by :mod:`latentry.serving.entries.publishing` and ``tuning``, and compared with
their manifests by ``verification``.
"""

from dataclasses import dataclass
from pathlib import Path

from latentry.contract.errors import EntryError, LatentryError, NotFound, listed
from latentry.contract.spec import check_name
from latentry.serving.entries.manifest import MANIFEST_FILE, Manifest, read_manifest

# How the names of folders begin in which something is being written or deleted.
TEMPORARY_FOLDER = ".latentry-tmp-"
README = "README.md"
MODEL_FILE = "model.py"
STREAM_MODEL_PY = b'''"""Streams chunks of one generator; the same three lines for every one."""

from latentry.serving.triton.stream_model import StreamModel as TritonPythonModel  # noqa: F401
'''
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
    for folder in version_folders(repository):
        try:
            entries.append(read_entry(folder))
        except LatentryError as error:
            errors[folder] = error
    entries.sort(key=lambda entry: (entry.name, entry.version))
    return entries, errors


def list_strays(repository: Path) -> list[Path]:
    """Return what lies in ``repository`` and is no model of ours."""
    known = {folder.parent for folder in version_folders(repository)}
    known.add(repository / README)
    return sorted(
        path
        for path in repository.iterdir()
        if path not in known and not path.name.startswith(TEMPORARY_FOLDER)
    )


def newest_entries(repository: Path, names: tuple[str, ...] = ()) -> list[Entry]:
    """Return the newest version of every model, or of ``names`` only.

    Raises:
        NotFound: A name is not there, or there is nothing at all.
        EntryError: Something there is damaged; all of it is listed.
    """
    newest = {}
    for folder in sorted(version_folders(repository), key=lambda path: int(path.name)):
        newest[folder.parent.name] = folder
    if not newest:
        raise NotFound(f"{repository} holds no entry; run `latentry export CHECKPOINT` first")
    if missing := [name for name in names if name not in newest]:
        raise NotFound(f"{listed(missing)} is not in {repository}; there: {listed(newest)}")
    entries, errors = [], []
    for name in sorted(set(names) or newest):
        try:
            entries.append(read_entry(newest[name]))
        except LatentryError as error:
            errors.append(str(error))
    if errors:
        raise EntryError(listed(errors, "\n"))
    return entries


def version_folders(repository: Path, name: str = "*") -> list[Path]:
    """Return the folders of all versions of the models of ours, or of ``name`` only.

    Raises:
        NotFound: ``repository`` is no folder.
    """
    if not repository.is_dir():
        raise NotFound(f"{repository} is no folder; give the model repository with --repository")
    folders = [
        path for path in repository.glob(f"{name}/*") if path.name.isdecimal() and path.is_dir()
    ]
    ours = {path.parent for path in folders if (path / MANIFEST_FILE).exists()}
    return sorted(path for path in folders if path.parent in ours)


def read_entry(folder: Path) -> Entry:
    """Return the entry in a version's folder, its manifest read and its files not yet compared.

    Raises:
        EntryError: It has no sound manifest.
        BadRequest: The folder above has no name that a model may have.
    """
    name = check_name(folder.parent.name)
    return Entry(name, int(folder.name), folder, read_manifest(folder))
