"""The model repository: entries ``<repository>/<name>/<version>/``, and which of them there are.

They are written by :mod:`latentry.serving.entries.publishing`, ``builds`` and ``tuning``, and
compared with what their JSON files say by ``verification``. A version holds ``model.json``,
``record.json`` and ``builds/<engine>-<precision>/`` (:mod:`latentry.serving.entries.manifests`);
its file ``default_build``, where there is one, names the build that is served unless another is
asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentry.contract.errors import EntryError, LatentryError, NotFound, listed
from latentry.contract.files import read_regular
from latentry.contract.spec import GeneratorSpec, check_name
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    DEFAULT_BUILD,
    FP32,
    MODEL_JSON,
    OLD_MANIFEST,
    RECORD_JSON,
    Build,
    ExportRecord,
    StoredModel,
    check_model,
    check_networks,
    read_model,
)
from latentry.serving.entries.sealed import FileRecord, read_sealed

# How the names of folders begin in which something is being written or deleted.
TEMPORARY_FOLDER = ".latentry-tmp-"
README = "README.md"
_MOST_NAME = 200
MODEL_FILE = "model.py"
STREAM_MODEL_PY = b'''"""Streams chunks of one generator; the same three lines for every one."""

from latentry.serving.triton.stream_model import StreamModel as TritonPythonModel  # noqa: F401
'''
MODEL_PY = b'''"""Serves this entry; the same three lines for every generator."""

from latentry.serving.triton.front_model import FrontModel as TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class Entry:
    """One version of one model and one of its builds; what their JSON files say was checked.

    Attributes:
        name: The model.
        version: Its version.
        folder: The folder of the version.
        model: What draws the image.
        record: Where it came from.
        build: The build that is meant: the default one, unless another was asked for.
    """

    name: str
    version: int
    folder: Path
    model: StoredModel
    record: ExportRecord
    build: Build

    @property
    def spec(self) -> GeneratorSpec:
        """What the generator takes and gives."""
        return self.model.content.spec

    @property
    def digest(self) -> str:
        """The model digest."""
        return self.model.digest

    @property
    def build_folder(self) -> Path:
        """Where the build lies."""
        return self.folder / BUILDS / self.build.name

    def files(self) -> dict[Path, FileRecord]:
        """Return every file that has a record, by its path below :attr:`folder`."""
        beside = {Path(name): record for name, record in self.record.files.items()}
        inside = Path(BUILDS, self.build.name)
        own = {**self.build.artefacts, **self.build.files}
        return beside | {inside / name: record for name, record in own.items()}


def list_entries(repository: Path) -> tuple[list[Entry], dict[Path, LatentryError]]:
    """Return every entry, by name and version, and an error for each folder that cannot be read.

    Models none of whose versions has a ``model.json`` are none of ours and are left out
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


def newest_entries(
    repository: Path, names: tuple[str, ...] = (), builds: Mapping[str, str] | None = None
) -> list[Entry]:
    """Return the newest version of every model, or of ``names`` only.

    Args:
        repository: The model repository.
        names: Models; empty means all.
        builds: The build of each model of which not the default one is meant.

    Raises:
        NotFound: A name or a build is not there, or there is nothing at all.
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
            entries.append(read_entry(newest[name], (builds or {}).get(name)))
        except NotFound:  # a build that was asked for: nothing is damaged
            raise
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
        path
        for model in repository.glob(name)
        for path in _listed(model)
        if path.name.isdecimal() and path.is_dir()
    ]
    ours = {path.parent for path in folders if _is_ours(path)}
    return sorted(path for path in folders if path.parent in ours)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # removed meanwhile, or a file
        return []


def read_entry(folder: Path, build: str | None = None) -> Entry:
    """Return the entry in a version's folder; its JSON files are read, the others not yet compared.

    Args:
        folder: ``<repository>/<name>/<version>``.
        build: The build that is meant; None for the default one.

    Raises:
        NotFound: There is no such build.
        EntryError: One of the JSON files is missing, was changed, or is about another model.
        BadRequest: The folder above has no name that a model may have.
    """
    name = check_name(folder.parent.name)
    if (folder / OLD_MANIFEST).exists():
        raise EntryError(
            f"{folder} was made by Latentry 0.4 or before ({OLD_MANIFEST}); export {name} again"
        )
    model = read_model(folder)
    record = read_sealed(path := folder / RECORD_JSON, ExportRecord)
    check_model(path, record.model, model)
    chosen = default_build(folder) if build is None else build
    if chosen not in (known := build_names(folder)):
        there = listed(known) or "none"
        raise NotFound(f"{name} version {folder.name} has no build {chosen!r}; it has {there}")
    return Entry(name, int(folder.name), folder, model, record, read_build(folder, chosen, model))


def read_build(folder: Path, name: str, model: StoredModel) -> Build:
    """Return a build of the version in ``folder``.

    Raises:
        EntryError: It has no sound ``build.json``, or one of another model or build.
    """
    path = folder / BUILDS / name / BUILD_JSON
    try:
        build = read_sealed(path, Build)
        check_model(path, build.model, model)
        if build.name != name:
            raise EntryError(f"{path} is of the build {build.name}; remove its folder")
        check_networks(str(path), build.artefacts, model.content.spec)
    except EntryError as error:
        if name == FP32:
            raise
        # An export would make a new version without this build, and without the others.
        advice = f"`latentry models remove {folder.parent.name} --build {name}` removes it"
        raise EntryError(f"{str(error).removesuffix('; export again')}; {advice}") from error
    if name == FP32 and build.artefacts != model.content.networks:
        raise EntryError(f"{path} names other networks than {folder / MODEL_JSON}; export again")
    return build


def build_names(folder: Path) -> list[str]:
    """Return the names of the builds of the version in ``folder``, sound or not, FP32 first."""
    names = sorted(path.name for path in folder.glob(f"{BUILDS}/*") if path.is_dir())
    return sorted(names, key=lambda name: name != FP32)


def default_build(folder: Path) -> str:
    """Return the name of the build of the version in ``folder`` that is served unless told.

    Raises:
        EntryError: The file that names it cannot be read, or it is not there.
    """
    path = folder / DEFAULT_BUILD
    try:
        name = read_regular(path, most=_MOST_NAME).decode().strip()
    except FileNotFoundError:
        return FP32
    except (OSError, UnicodeDecodeError) as error:
        raise EntryError(f"{path} cannot be read ({error}); remove it") from error
    if name not in (known := build_names(folder)):
        raise EntryError(f"{path} names {name!r}; there: {listed(known)}; remove it")
    return name


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in (MODEL_JSON, OLD_MANIFEST))
