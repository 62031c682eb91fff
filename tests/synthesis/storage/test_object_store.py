import errno
from typing import Any

import pytest

from latentry.contract.errors import JobError, OutOfSpace, ServerGone
from latentry.synthesis.storage.object_store import ObjectStore
from latentry.synthesis.storage.urls import storage_from_url


def test_two_stores_of_one_address_see_each_other(memory: ObjectStore) -> None:
    memory.write("shard.json", b"x")
    with memory.locked(), storage_from_url("memory://jobs/digits").locked():
        assert storage_from_url("memory://jobs/digits").sizes() == {"shard.json": 1}
    assert memory.owner() == ""
    assert memory.holds("shard.json")
    assert not memory.holds("shard")


@pytest.mark.parametrize(
    ("info", "md5"),
    [
        ({"ETag": '"8d777f385d3dfec8815d20f7496026dc"'}, "8d777f385d3dfec8815d20f7496026dc"),
        ({"ETag": '"8d777f385d3dfec8815d20f7496026dc-2"'}, ""),  # of several parts
        ({"md5Hash": "jXd/OF09/siBXSD3SWAm3A=="}, "8d777f385d3dfec8815d20f7496026dc"),
        ({"md5Hash": "no base64"}, ""),
        ({}, ""),
    ],
)
def test_the_md5_is_what_a_store_tells(
    memory: ObjectStore, monkeypatch: pytest.MonkeyPatch, info: dict[str, str], md5: str
) -> None:
    memory.write("a", b"data")
    monkeypatch.setattr(type(memory._files), "info", lambda *_: {"size": 4, **info})
    assert memory.told("a") == (4, md5)


def test_an_upload_is_tried_again_and_then_told(
    memory: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    pipe, failures = files.pipe_file, [OSError("reset by peer")] * 2

    def pipe_file(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        pipe(*arguments)

    monkeypatch.setattr(type(files), "pipe_file", lambda _, *arguments: pipe_file(*arguments))
    memory.write("a", b"data")
    assert memory.read("a") == b"data"
    failures += [OSError(errno.ENOSPC, "quota")]
    with pytest.raises(
        OutOfSpace, match=r"memory://jobs/digits cannot be written \(b, 4 bytes\).*quota"
    ):
        memory.write("b", b"data")
    failures += [OSError("reset by peer")] * 3
    with pytest.raises(ServerGone, match="reset by peer; check the address and its credentials"):
        memory.write("b", b"data")
    assert memory.sizes() == {"a": 4}


def test_nothing_larger_or_other_than_its_record_says_is_fetched(memory: ObjectStore) -> None:
    memory.write("a", b"data")
    for read in (memory.read, memory.sha256):
        assert read("a", most=4)
        with pytest.raises(JobError, match="memory://jobs/digits/a is larger than 3 bytes"):
            read("a", most=3)
    with memory.open("a", size=4) as file:
        assert file.read() == b"data"
    with pytest.raises(JobError, match="a was changed: it has 4 bytes, its record says 5"):
        memory.open("a", size=5)
