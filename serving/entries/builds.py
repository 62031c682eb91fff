"""The builds of a version: which there are, which is served, and adding one.

A build is made aside and renamed in, so adding one changes no other byte and no version.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from latentry.contract.errors import (
    BadRequest,
    EntryError,
    LatentryError,
    NotFound,
    OutOfSpace,
    listed,
)
from latentry.contract.files import FULL, is_plain_name, no_room, publish_folder, write_atomic
from latentry.serving.entries.manifests import BUILDS, DEFAULT_BUILD, FP32, Build
from latentry.serving.entries.publishing import (
    locked,
    temporary_folder,
    write_build,
    write_config,
)
from latentry.serving.entries.repository import Entry, build_names, default_build, read_entry


def list_builds(entry: Entry) -> tuple[list[Entry], dict[Path, LatentryError]]:
    """Return ``entry`` with each of its builds, FP32 first, and an error for each unsound one."""
    builds, errors = [], {}
    for name in build_names(entry.folder):
        try:
            builds.append(read_entry(entry.folder, name))
        except LatentryError as error:
            errors[entry.folder / BUILDS / name] = error
    return builds, errors


def with_build_digest(entry: Entry, digest: str) -> Entry | None:
    """Return ``entry`` with its build of this digest; None where it has none."""
    return next((one for one in list_builds(entry)[0] if one.build.digest == digest), None)


def add_build(
    repository: Path, entry: Entry, build: Build, files: Mapping[str, bytes], *, is_default: bool
) -> Entry:
    """Add a build to ``entry``, and have it served from now on if it ``is_default``.

    Args:
        repository: The model repository.
        entry: The version.
        build: The build.
        files: Its files, artefacts and others, by name.
        is_default: Whether a server takes it unless it is told another.

    Raises:
        BadRequest: The version has a build of this name, or was removed or replaced meanwhile.
        OutOfSpace: The disk is full; nothing is left behind.
        OSError: The file system refused; nothing is left behind.
    """
    with locked(repository), temporary_folder(repository) as temporary:
        _check_is_there(entry)
        check_is_new(entry, build.name)
        folder, half = entry.folder / BUILDS / build.name, temporary / build.name
        write_build(half, build, files, folder)
        publish_folder(half, folder)
        try:
            if is_default:
                _make_default(entry, build.name, temporary)
        except BaseException:
            folder.rename(half)
            raise
        write_config(repository, entry.name)
    return read_entry(entry.folder, build.name)


def _check_is_there(entry: Entry) -> None:
    """Check that the version was not replaced while something was made of it; raises BadRequest."""
    try:
        is_there = read_entry(entry.folder, FP32).digest == entry.digest
    except LatentryError:
        is_there = False
    if not is_there:
        raise BadRequest(f"{entry.folder} was removed or replaced meanwhile; build again")


def check_is_new(entry: Entry, name: str) -> None:
    """Check that ``entry`` has no build of this name yet; raises BadRequest."""
    if (entry.folder / BUILDS / name).exists():
        raise BadRequest(
            f"{entry.name} version {entry.version} has the build {name} already; "
            f"`latentry models remove {entry.name} --build {name}` removes it"
        )


def set_default_build(repository: Path, entry: Entry, name: str) -> Entry:
    """Have a build of ``entry`` served from now on unless a server is told another.

    Raises:
        NotFound: There is no such build.
    """
    with locked(repository):
        chosen = read_entry(entry.folder, name)
        with temporary_folder(repository) as temporary:
            _make_default(entry, name, temporary)
        write_config(repository, entry.name)
    return chosen


def remove_build(repository: Path, entry: Entry, name: str) -> Path:
    """Remove a build of ``entry`` and return its folder; FP32 follows it as the default.

    Raises:
        NotFound: There is no such build.
        BadRequest: It is the one by which the others are judged.
    """
    if name == FP32:
        raise BadRequest(
            f"{FP32} is what the other builds are judged by; `latentry models remove {entry.name} "
            f"--version {entry.version}` removes the version"
        )
    with locked(repository), temporary_folder(repository) as trash:
        folder = entry.folder / BUILDS / name
        if not is_plain_name(name) or not os.path.lexists(folder):  # one that is damaged, too
            known = listed(build_names(entry.folder))
            raise NotFound(
                f"{entry.name} version {entry.version} has no build {name!r}; it has {known}"
            )
        if _default_of(entry) == name:
            (entry.folder / DEFAULT_BUILD).unlink()
        folder.rename(trash / name)
        write_config(repository, entry.name)
    return folder


def _make_default(entry: Entry, name: str, temporary: Path) -> None:
    pointer = entry.folder / DEFAULT_BUILD
    if name == FP32:
        pointer.unlink(missing_ok=True)
        return
    try:
        write_atomic(pointer, f"{name}\n".encode(), beside=temporary)
    except OSError as error:
        if error.errno in FULL:
            raise OutOfSpace(
                f"{no_room(pointer, len(name), error)}; nothing was changed; free some and run "
                "the same command again"
            ) from error
        raise


def _default_of(entry: Entry) -> str | None:
    """Return the name of the default build; None where the file says nothing that is there."""
    try:
        return default_build(entry.folder)
    except EntryError:
        return None
