"""How a build is served: its ``serving`` part, which changes no image and no digest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from latentry.contract.errors import BadRequest
from latentry.contract.files import write_atomic
from latentry.contract.spec import check_name
from latentry.contract.strict import explain
from latentry.serving.entries.builds import with_build_digest
from latentry.serving.entries.manifests import BUILD_JSON, ServingPart
from latentry.serving.entries.publishing import locked, temporary_folder, write_config
from latentry.serving.entries.repository import Entry, newest_entries, version_folders
from latentry.serving.entries.sealed import sealed_bytes


def with_serving(entry: Entry, changes: Mapping[str, int]) -> Entry:
    """Return ``entry`` with some fields of its ``serving`` part changed; nothing is written.

    Raises:
        BadRequest: A value is not allowed, or the export did not prove batches of that size.
    """
    serving = entry.build.serving
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
    return replace(entry, build=entry.build.model_copy(update={"serving": changed}))


def most_proved_batch(entry: Entry) -> int:
    """Return the largest batch up to which the export proved that rows do not depend on it."""
    return max(entry.build.parity.batch_sizes)


def tune_entry(
    repository: Path, name: str, changes: Mapping[str, int], *, build_digest: str
) -> Entry:
    """Change the ``serving`` part of a build of the newest version; return the entry as it is now.

    Every digest, every image and every running server stay as they are: a server takes the new
    values at its next start. ``build.json`` is replaced whole, and ``config.pbtxt`` follows it.

    Args:
        repository: The model repository.
        name: The model.
        changes: Fields of :class:`latentry.serving.entries.manifests.ServingPart`.
        build_digest: What the values were measured with.

    Raises:
        NotFound: There is no such model.
        BadRequest: The newest version has no such build, or a value is not allowed.
        EntryError: The newest version is damaged.
    """
    check_name(name)
    version_folders(repository)
    with locked(repository):
        (entry,) = newest_entries(repository, (name,))
        if not (measured := with_build_digest(entry, build_digest)):
            raise BadRequest(
                f"{name} version {entry.version} has no build with the digest {build_digest[:12]}, "
                "with which the values were measured; profile this version"
            )
        tuned = with_serving(measured, changes)
        with temporary_folder(repository) as temporary:
            path = tuned.build_folder / BUILD_JSON
            write_atomic(path, sealed_bytes(tuned.build), beside=temporary)
        write_config(repository, name)
    return tuned
