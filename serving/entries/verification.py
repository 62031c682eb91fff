"""Whether an entry is whole: every file as its JSON files say, and none besides."""

import hashlib
import os
from pathlib import Path

from latentry.contract.errors import EntryError, listed
from latentry.contract.files import open_regular
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifests import BUILD_JSON, BUILDS, MODEL_JSON, RECORD_JSON
from latentry.serving.entries.repository import DEFAULT_BUILD, Entry, build_names
from latentry.serving.entries.sealed import FileRecord


def verify_entry(entry: Entry) -> None:
    """Compare every file of ``entry``, of its builds the one that is meant, with their records.

    Raises:
        EntryError: Naming every file that is missing, was changed (with both hashes), or does not
            belong there.
    """
    problems = [
        problem
        for path, record in entry.files().items()
        if (problem := _file_problem(entry.folder / path, record))
    ]
    if not problems:
        try:
            read_goldens(entry)
        except EntryError as error:
            problems.append(str(error))
    strays = [
        f"{path} does not belong to the entry; {_advice(path.name)}" for path in _strays(entry)
    ]
    advice = f"\nexport {entry.name} again, or `latentry models remove` it" if problems else ""
    if problems or strays:
        raise EntryError(listed(problems + strays, "\n") + advice)


def _strays(entry: Entry) -> list[Path]:
    """Return what lies in the folders of ``entry`` and is none of its files, sorted."""
    build = entry.build
    expected = {
        entry.folder: {MODEL_JSON, RECORD_JSON, BUILDS, DEFAULT_BUILD, *entry.record.files},
        entry.folder / BUILDS: set(build_names(entry.folder)),
        entry.build_folder: {BUILD_JSON, *build.artefacts, *build.files},
    }
    return [
        path
        for folder, names in expected.items()
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
