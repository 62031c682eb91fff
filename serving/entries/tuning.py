"""How an entry is served: its ``serving`` part, which changes no image and no digest."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from latentry.contract.errors import BadRequest
from latentry.contract.files import write_atomic
from latentry.contract.spec import check_name
from latentry.contract.strict import explain
from latentry.serving.entries.manifest import MANIFEST_FILE, ServingPart, manifest_bytes
from latentry.serving.entries.publishing import locked, temporary_folder, write_config
from latentry.serving.entries.repository import Entry, newest_entries, version_folders


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
    version_folders(repository)
    with locked(repository):
        (entry,) = newest_entries(repository, (name,))
        if entry.manifest.digest != model_digest:
            raise BadRequest(
                f"{name} version {entry.version} has model digest {entry.manifest.digest[:12]}, "
                f"the values were measured with {model_digest[:12]}; profile this version"
            )
        tuned = with_serving(entry, changes)
        with temporary_folder(repository) as temporary:
            path = entry.folder / MANIFEST_FILE
            write_atomic(path, manifest_bytes(tuned.manifest), beside=temporary)
        write_config(repository, name)
    return tuned
