import os
import socket
import threading
from pathlib import Path

import pytest

from latentry.serving.files import (
    is_plain_name,
    open_regular,
    parse_json,
    parse_toml,
    printable,
    read_regular,
)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, most=5) == read_regular(tmp_path / "link", most=5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_regular(path, most=4)


@pytest.mark.parametrize("kind", ["fifo", "device", "endless", "folder", "loop", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    caught: list[OSError] = []

    def read() -> None:
        try:
            open_regular(path).close()
        except OSError as error:
            caught.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert caught


def test_deep_texts_are_value_errors() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml("a = " + "[" * 100_000)
    with pytest.raises(ValueError, match="line 1"):
        parse_json(b"{")
    with pytest.raises(ValueError, match="end of document"):
        parse_toml("a")
    assert parse_json("[1]") == [1]
    assert parse_toml(b"a = 1") == {"a": 1}


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "a/b", "../a", "a/", "a\0b"])
def test_a_path_is_no_plain_name(name: str) -> None:
    assert not is_plain_name(name)
    assert is_plain_name("generator.onnx")


def test_nothing_a_terminal_obeys_is_left() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\u202ec\n\td") == "a\\x1b[2Jb\\x07\\x9b\\u202ec\n\td"
    assert printable("grün, 図") == "grün, 図"
