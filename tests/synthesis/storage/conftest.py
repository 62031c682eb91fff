from collections.abc import Iterator
from pathlib import Path

import pytest

from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.object_store import ObjectStore


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    (tmp_path / "out").mkdir()
    return LocalFolder(tmp_path / "out")


@pytest.fixture
def memory() -> Iterator[ObjectStore]:
    fsspec = pytest.importorskip("fsspec", reason="object stores need the extra [synthesis]")
    yield ObjectStore("memory://jobs/digits/")
    fsspec.filesystem("memory").store.clear()
