"""A disk that takes only half of a file."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from arithmetic_server import FakeTransport

from latentry.clients.client import Client

LEFT_BYTES = 100


@contextmanager
def nearly_full() -> Iterator[None]:
    """Let this process write no file of more than a hundred bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_image_is_written_whole_or_not_at_all(transport: FakeTransport, tmp_path: Path) -> None:
    result = Client(transport=transport).generate("plain", seeds=[1, 2])
    # In the block nothing is reported: what the tests write may be a file, too.
    with pytest.raises(OSError, match=r"seed0000000001\.png") as refusal, nearly_full():
        result.save(tmp_path)
    assert refusal.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_was_there_stays(transport: FakeTransport, tmp_path: Path) -> None:
    result = Client(transport=transport).generate("plain", seeds=[1])
    (path,) = result.save(tmp_path)
    path.write_bytes(b"mine")
    with pytest.raises(OSError, match=r"seed0000000001\.png"), nearly_full():
        result.save(tmp_path)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]
