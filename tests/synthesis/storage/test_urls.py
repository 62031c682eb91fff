from pathlib import Path

import pytest

from latentry.contract.errors import BadRequest, JobError
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.protocol import Storage
from latentry.synthesis.storage.urls import storage_from_url


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest) -> Storage:
    made: Storage = request.getfixturevalue(request.param)
    return made


def test_files_come_back_as_they_were_written(storage: Storage) -> None:
    storage.write("a.json", b"one")
    storage.write("b.tar", bytes(range(256)) * 4000)
    storage.write("empty", b"")
    assert storage.sizes() == {"a.json": 3, "b.tar": 1024000, "empty": 0}
    assert storage.read("b.tar") == bytes(range(256)) * 4000
    storage.write("a.json", b"another")
    assert storage.read("a.json") == b"another"
    storage.remove("a.json")
    storage.remove("a.json")
    assert "a.json" not in storage.sizes()


def test_a_missing_file_is_named(storage: Storage) -> None:
    with pytest.raises(JobError, match=r"digits/gone.json|out/gone.json cannot be read"):
        storage.read("gone.json")


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_an_address_of_this_machine_is_a_folder(tmp_path: Path, prefix: str) -> None:
    storage = storage_from_url(f"{prefix}{tmp_path}/out")
    assert isinstance(storage, LocalFolder)
    assert storage.path == tmp_path / "out"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "abfss://bucket/x"])
def test_an_address_that_nothing_knows_is_refused(url: str) -> None:
    pytest.importorskip("fsspec", reason="object stores need the extra [synthesis]")
    with pytest.raises(BadRequest, match=rf"--out {url}: .*; give a folder, or install the"):
        storage_from_url(url)
