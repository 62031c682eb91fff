"""Whether an entry is whole: every file as its manifest says, and none besides."""

import hashlib
import os
from pathlib import Path

from latentry.contract.errors import EntryError, listed
from latentry.contract.files import open_regular
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.manifest import MANIFEST_FILE, FileRecord
from latentry.serving.entries.repository import Entry


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
    advice = f"\nexport {entry.name} again, or `latentry models remove` it" if problems else ""
    if problems or strays:
        raise EntryError(listed(problems + strays, "\n") + advice)


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
