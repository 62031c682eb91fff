"""Which storage an address means."""

from pathlib import Path

from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.object_store import ObjectStore
from latentry.synthesis.storage.protocol import Storage


def storage_from_url(url: str) -> Storage:
    """Return the storage at ``url``: a folder's path, or a URL that fsspec knows.

    Raises:
        BadRequest: Nothing installed knows such a URL.
    """
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        return ObjectStore(url)
    return LocalFolder(Path(url))
