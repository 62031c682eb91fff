"""Damaged and hostile job folders: one line, exit code 0 or 1, nothing hangs, little memory.

tests/slow/test_synthesis_hostile.py does the same many more times.
"""

import io
import json
import os
import resource
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_jobs import JOB, attack, check, command, make_jobs

from latentry.clients.jobs import OutputPart
from latentry.clients.shards import read_shard
from latentry.serving.spec import ImageOutput

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

GREY = ImageOutput(height=4, width=4, channels=1)


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a small whole job in each format."""
    return make_jobs(tmp_path_factory.mktemp("hostile"), repository)


@pytest.mark.parametrize("seed", range(36))
def test_whatever_is_done_to_a_folder_ends_in_a_line(
    made: list[Path], repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:  # fmt: skip
    attack(made[seed % 3], repository, tmp_path, seed, capsys)


# --- bombs in shards ----------------------------------------------------------------------------


def png_of(height: int, width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(2**22))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


FACTS = json.dumps({"index": 0, "seed": 0, "sha256": "0" * 64}).encode()


def tar_of(*members: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def odd(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def claiming(size: int) -> bytes:
    """Return a tar file whose first member says that it has so many bytes."""
    header = odd("0.json", size=size).tobuf(tarfile.GNU_FORMAT)
    return header + bytes(1024)


TARS = {
    "a large picture": tar_of(("0.json", FACTS), ("0.png", png_of(60_000, 60_000))),
    "a picture of another size": tar_of(("0.json", FACTS), ("0.png", png_of(8, 8))),
    "gigabytes": claiming(8 * 2**30),
    "a terabyte": claiming(2**40),
    "less than nothing": claiming(-1),
    "a link": tar_of((odd("0.json", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")),
    "a hard link": tar_of((odd("0.json", tarfile.LNKTYPE, linkname="/etc/passwd"), b"")),
    "a device": tar_of((odd("0.json", tarfile.CHRTYPE, devmajor=1, devminor=5), b"")),
    "a FIFO": tar_of((odd("0.json", tarfile.FIFOTYPE), b"")),
    "a folder": tar_of((odd("0.json", tarfile.DIRTYPE), b"")),
    "a long name": tar_of(("0" * 300 + ".json", FACTS)),
    "a path": tar_of(("../../0.json", FACTS), ("/etc/0.png", b"")),
    "deep facts": tar_of(("0.json", b"[" * 60_000), ("0.png", b"")),
    "facts of another kind": tar_of(("0.json", b"[1]"), ("0.png", png_of(4, 4))),
    "a control of another kind": tar_of(
        ("0.json", FACTS[:-1] + b', "class_label": [1, 2]}'), ("0.png", png_of(4, 4))
    ),
    "facts alone": tar_of(("0.json", FACTS)),
    "more samples": tar_of(*[("0.json", FACTS), ("0.png", png_of(4, 4))] * 2),
    "nothing": b"",
    "no tar": b"x" * 2000,
    "no sound number": odd("0.json").tobuf()[:124] + b"9" * 388,
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(TARS[name], "webdataset")


def refuse(data: bytes, kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = OutputPart.model_validate({"format": kind})
    with pytest.raises(Exception):  # noqa: B017, PT011  # of any kind; the caller takes all
        list(read_shard(io.BytesIO(data), output, GREY, 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def npz_of(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    sound = {"images": np.zeros((1, 4, 4, 1), np.uint8), "index": np.zeros(1, np.int64)}
    np.savez_compressed(buffer, **{**sound, "seed": np.zeros(1, np.int64), **arrays})
    return buffer.getvalue()


NPZS = {
    "many images": {"images": np.zeros((60_000, 32, 32, 1), np.uint8)},
    "images of another kind": {"images": np.zeros((1, 4, 4, 1), np.float64)},
    "many seeds": {"seed": np.zeros(10_000_000, np.int64)},
    "texts for seeds": {"seed": np.array(["x" * 100_000])},
    "objects": {"seed": np.array([{}], object)},
    "a large column": {"extra": np.zeros((1, 10_000_000), np.int64)},
    "large numbers": {"truncation_psi": np.zeros(1, np.longdouble)},
}


@pytest.mark.parametrize("name", NPZS)
def test_an_npz_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(npz_of(**NPZS[name]), "npz")


def table_of(rows: int = 1, **columns: Any) -> Callable[[], bytes]:
    def write() -> bytes:
        import pyarrow
        import pyarrow.parquet

        sound = {"index": [0] * rows, "seed": [0] * rows, "sha256": ["0" * 64] * rows}
        data = {**sound, "image": [png_of(4, 4)] * rows, **columns}
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(data), buffer)
        return buffer.getvalue()

    return write


TABLES = {
    "many rows": table_of(2_000_000, image=[b""] * 2_000_000),
    "a large picture": table_of(image=[bytes(20_000_000)]),
    "a picture of another size": table_of(image=[png_of(8, 8)]),
    "lists for pictures": table_of(image=[[1, 2]]),
    "lists for seeds": table_of(seed=[[1, 2]]),
    "tables for controls": table_of(class_label=[{"a": 1}]),
    "texts for controls": table_of(class_label=["x"]),
    "no seed": table_of(seed=[None], class_label=[None]),
    "many columns": table_of(**{f"c{n}": [1] for n in range(100)}),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_parquet_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(TABLES[name](), "parquet")


# --- the job's own file -------------------------------------------------------------------------


def texts() -> dict[str, bytes]:
    return {
        "brackets": b"a = " + b"[" * 100_000,
        "a dotted key": b"a" + b".a" * 400_000 + b" = 1",
        "headers": b"[a" + b".a" * 400_000 + b"]",
        "tables": b"a = " + b"{a = " * 100_000,
        "no UTF-8": b'model = "\xff\xfe"',
        "UTF-16": 'model = "digits"'.encode("utf-16"),
        "NULs": bytes(1000),
        "a long number": b"a = " + b"9" * 10_000,
        "escapes": b'model = "\\u001b[31m"\n"\\u009b" = 1\n',
        "many keys": b"".join(b"k%d = 1\n" % n for n in range(50_000)),
        "times": b"model = 1979-05-27T07:32:00Z",
        "NaN": b'model = "digits"\n[samples]\nseeds = "0-9"\nreserve = nan',
        "a large file": b"#" * 2**21,
    }


@pytest.mark.parametrize("name", texts())
def test_a_job_of_another_kind_is_one_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "job.toml").write_bytes(texts()[name])
    assert check(command("run", tmp_path, repository), capsys, name) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"job.toml"}


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "/dev/zero", "/dev/null", "sparse"])
def test_a_job_that_is_no_file_is_one_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "job.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to(path if kind == "loop" else kind)
    assert check(command("run", tmp_path, repository), capsys, kind) == 1


@pytest.mark.parametrize("kind", ["fifo", "loop", "/dev/zero", "sparse"])
def test_a_network_that_is_no_file_is_one_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "net.onnx"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    else:
        path.symlink_to(path if kind == "loop" else kind)
    text = JOB.format("webdataset") + '\n[[filters]]\nkind = "classifier"\nfile = "net.onnx"\n'
    (tmp_path / "job.toml").write_text(text)
    assert check(command("run", tmp_path, repository), capsys, kind) == 1
