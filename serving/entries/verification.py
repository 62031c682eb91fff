"""Whether an entry is whole: every file as its JSON files say, and none besides."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from latentry.contract.errors import EntryError, listed
from latentry.contract.files import open_regular
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    DEFAULT_BUILD,
    FP32,
    MODEL_JSON,
    RECORD_JSON,
)
from latentry.serving.entries.repository import Entry, build_names
from latentry.serving.entries.sealed import FileRecord


def verify_entry(entry: Entry) -> None:
    """Compare every file of ``entry``, of its builds the one that is meant, with their records.

    Raises:
        EntryError: Naming every file that is missing, was changed (with both hashes), or does not
            belong there.
    """
    problems = _problems(entry.folder, entry.record.files) + _build_problems(entry)
    strays = [*_version_strays(entry), *_build_strays(entry)]
    advice = f"export {entry.name} again, or `latentry models remove` it"
    _refuse(problems, strays, advice)


def verify_version(entry: Entry) -> None:
    """Compare the files of the version itself, without those of its builds; raises EntryError."""
    advice = f"export {entry.name} again, or `latentry models remove` it"
    _refuse(_problems(entry.folder, entry.record.files), _version_strays(entry), advice)


def verify_build(entry: Entry) -> None:
    """Compare the files of the build that is meant; raises EntryError."""
    advice = f"export {entry.name} again, or `latentry models remove` it"
    if entry.build.name != FP32:
        advice = f"`latentry models remove {entry.name} --build {entry.build.name}` removes it"
    _refuse(_build_problems(entry), _build_strays(entry), advice)


def _refuse(problems: list[str], strays: list[str], advice: str) -> None:
    if problems or strays:
        raise EntryError(listed(problems + strays, "\n") + f"\n{advice}" * bool(problems))


def _problems(folder: Path, records: Mapping[str, FileRecord]) -> list[str]:
    found = (_file_problem(folder / name, record) for name, record in records.items())
    return [problem for problem in found if problem]


def _build_problems(entry: Entry) -> list[str]:
    build = entry.build
    problems = _problems(entry.build_folder, {**build.artefacts, **build.files})
    if not problems:
        try:
            read_goldens(entry)
        except EntryError as error:
            problems.append(str(error))
    return problems


def _version_strays(entry: Entry) -> list[str]:
    names = {MODEL_JSON, RECORD_JSON, BUILDS, DEFAULT_BUILD, *entry.record.files}
    builds = set(build_names(entry.folder))
    return [*_strays(entry.folder, names), *_strays(entry.folder / BUILDS, builds)]


def _build_strays(entry: Entry) -> list[str]:
    build = entry.build
    return _strays(entry.build_folder, {BUILD_JSON, *build.artefacts, *build.files})


def _strays(folder: Path, names: set[str]) -> list[str]:
    """Return a line for each thing in ``folder`` that is none of its files, sorted."""
    return [
        f"{path} does not belong to the entry; {_advice(path.name)}"
        for path in sorted(folder.iterdir())
        if path.name not in names
    ]


def _file_problem(path: Path, record: FileRecord) -> str:
    """Return what is wrong with a file of an entry; empty for nothing."""
    if not os.path.lexists(path):
        return f"{path} is missing"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size:
                return f"{path} was changed: it has {size:,} bytes, it should have {record.size:,}"
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if found != record.sha256:
        return f"{path} was changed: its SHA-256 is {found}, it should be {record.sha256}"
    return ""


def _advice(name: str) -> str:
    if name.startswith(".nfs"):
        return "some process has it open; it goes when that ends"
    return "delete it"
