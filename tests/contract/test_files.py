import contextlib
import errno
import hashlib
import os
import re
import socket
import threading
from pathlib import Path

import pytest
from running_server import open_files

from latentry.contract.files import (
    is_plain_name,
    last_lines,
    no_room,
    open_append,
    open_regular,
    parse_json,
    parse_toml,
    printable,
    publish_folder,
    read_regular,
    sha256_regular,
    sweep_temporary,
    write_atomic,
    write_new,
)


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_regular(path, most=5) == read_regular(tmp_path / "link", most=5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_regular(path, most=4)


def test_no_more_room_is_made_than_a_file_takes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    assert read_regular(tmp_path / "file", most=2**50) == b"1"
    assert read_regular("/proc/self/cmdline", most=2**50)  # of no size


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
    for dotted in ("a" + ".a" * 500_000 + "=1", "[a" + ' . "b"' * 150_000 + "]", "a.b." * 250_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_toml(dotted)
    short = "a." * 98  # of each of which the parser makes as many levels
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(f"{short}a = {{ {short}a = 1 }}")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        parse_toml(b"a = '\xff'")
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
    assert printable("a\u2028b\ud800") == r"a\u2028b\ud800"
    assert printable("grün, 図") == "grün, 図"


def test_the_last_lines_of_a_log_however_long_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(0, os.SEEK_END)
        file.write(b"\none\n\xfftwo\nthree\n")
    assert last_lines(path, 2) == "\ufffdtwo\nthree"
    os.mkfifo(tmp_path / "fifo")
    for nothing in (tmp_path / "gone", tmp_path / "fifo", Path("/dev/zero")):
        assert last_lines(nothing, 2) == ""


def test_the_last_lines_of_a_log_that_has_fewer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert last_lines(path, 20) == "one\ntwo"


def test_a_file_is_hashed_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    found = hashlib.sha256(b"abc").hexdigest()
    assert sha256_regular(path) == sha256_regular(path, most=3) == found
    with pytest.raises(OSError, match="larger than 2 bytes"):
        sha256_regular(path, most=2)


def test_a_log_may_be_a_file_a_device_or_a_fifo_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"one", b"two"):
        with open_append(path) as log:
            log.write(text)
    assert path.read_bytes() == b"onetwo"
    with open_append("/dev/null") as log:
        log.write(b"x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_append(tmp_path)
    with pytest.raises(OSError, match="nobody reads it; start its reader first"):
        open_append(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with open_append(tmp_path / "fifo") as log:
        assert os.get_blocking(log.fileno())
        log.write(b"x")
    assert os.read(reader, 10) == b"x"
    os.close(reader)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new", beside=tmp_path)
    assert path.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_what_is_no_bytes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        write_atomic(tmp_path / "file", 7)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left for {}: it takes 8,000 bytes and [0-9,]+ are free, "),
        (errno.EDQUOT, "your disk quota has no room for {}, 8,000 bytes"),
    ],
)
def test_a_full_disk_in_words(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "not" / "there" / "yet"
    assert re.match(words.format(path), no_room(path, 8000, OSError(number, "full")))


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".tmp-file-1a2b", ".tmp-x", "file", "tmp-file"):
        (tmp_path / name).touch()
    (tmp_path / ".tmp-folder").mkdir()  # no file of ours
    sweep_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "tmp-file", ".tmp-folder"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="the disk is broken") as caught:
        write_atomic(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_file_and_folder_are_synced_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def see_sync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def see_rename(*names: Path) -> None:
        calls.append("rename")
        rename(*names)

    def see_replace(*names: Path) -> None:
        calls.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", see_sync)
    monkeypatch.setattr(os, "rename", see_rename)
    monkeypatch.setattr(os, "replace", see_replace)
    write_atomic(tmp_path / "file", b"1")
    assert calls == ["file", "replace", "folder"]
    calls.clear()
    write_atomic(tmp_path / "file", b"2", sync=False)
    assert calls == ["replace"]
    calls.clear()
    made = tmp_path / "made"
    made.mkdir()
    write_new(made / "part", b"2")
    publish_folder(made, tmp_path / "folder")
    assert calls == ["file", "folder", "rename", "folder"]
    assert (tmp_path / "folder" / "part").read_bytes() == b"2"


def test_what_killed_writers_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "file", b"old")
    (tmp_path / "other").write_bytes(b"")
    monkeypatch.setattr(Path, "unlink", lambda *_: None)  # as a kill, it leaves what there is
    monkeypatch.setattr(os, "replace", lambda *_: os.stat("/nowhere"))
    with contextlib.suppress(OSError):
        write_atomic(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 3
    sweep_temporary(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "other"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    write_atomic(tmp_path / "made" / "file", b"1")
    publish_folder(tmp_path / "made", tmp_path / "folder")
    read_regular(tmp_path / "folder" / "file", most=1)
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="larger than"):
        sha256_regular(tmp_path / "folder" / "file", most=0)
    assert open_files(tmp_path) == []


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    write_new(tmp_path / "file", b"old")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_replaces_none_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "there").mkdir()
    write_new(tmp_path / "there" / "file", b"old")
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "made", tmp_path / "there")
    assert (tmp_path / "there" / "file").read_bytes() == b"old"
