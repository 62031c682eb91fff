"""Damaged and hostile job folders: one line, exit code 0 or 1, nothing hangs, little memory.

tests/slow/test_synthesis_hostile.py does the same many more times.
"""

import io
import json
import os
import resource
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_jobs import JOB, attack, check, command, make_jobs

from latentry.cli.main import main
from latentry.contract.errors import JobError
from latentry.contract.spec import ImageOutput
from latentry.synthesis import records as job_records
from latentry.synthesis.job import OutputPart, job_from_file
from latentry.synthesis.records import check_shard, read_job, read_shard_record
from latentry.synthesis.run import begin, open_record, run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.sinks.shards import read_shard
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.lock import identity, owner_in
from latentry.synthesis.verify import verify_shard

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


def refuse(data: bytes, kind: str, count: int = 1) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = OutputPart.model_validate({"format": kind})
    with pytest.raises(Exception):  # noqa: B017, PT011  # of any kind; the caller takes all
        list(read_shard(io.BytesIO(data), output, GREY, count))
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
    "a column of another name": {"extra": np.zeros(1, np.int64)},
    "large numbers": {"truncation_psi": np.zeros(1, np.longdouble)},
}


@pytest.mark.parametrize("name", NPZS)
def test_an_npz_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(npz_of(**NPZS[name]), "npz")


def test_an_npz_file_of_many_members_is_refused_before_they_are_listed() -> None:
    buffer = io.BytesIO(npz_of())
    with zipfile.ZipFile(buffer, "a") as archive:
        for number in range(2000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(ValueError, match="its directory takes over"):
        list(read_shard(buffer, OutputPart(format="npz"), GREY, 1))


def table_of(rows: int = 1, written: Any = None, **columns: Any) -> Callable[[], bytes]:
    """Return what writes a table; ``written`` says how."""

    def write() -> bytes:
        import pyarrow
        import pyarrow.parquet

        sound = {"index": [0] * rows, "seed": [0] * rows, "sha256": ["0" * 64] * rows}
        data = {**sound, "image": [png_of(4, 4)] * rows, **columns}
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(data), buffer, **(written or {}))
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
    "a long hash": table_of(1000, sha256=["0" * 2_000_000] * 1000),
    "a short hash": table_of(sha256=["0" * 63]),
    "no hash": table_of(sha256=[None]),
    "a hash that is a file": table_of(sha256=[b"0" * 64]),
    "a column of another name": table_of(extra=[1]),
    "vectors of any length": table_of(features=[[1.0, 2.0]]),
    "hashes that grow": table_of(
        1000,
        {"use_dictionary": False, "column_encoding": {"sha256": "DELTA_BYTE_ARRAY"}},
        sha256=["0" * 1_000_000] * 1000,
    ),
    "many columns": table_of(**{f"c{n}": [1] for n in range(100)}),
}


LONG = ("a long hash", "hashes that grow")


@pytest.mark.parametrize("name", TABLES)
def test_a_parquet_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(TABLES[name](), "parquet", count=1000 if name in LONG else 1)


def test_images_in_a_file_that_has_none_are_refused() -> None:
    output = OutputPart.model_construct(format="parquet", image="none")
    with pytest.raises(ValueError, match="its column image holds binary"):
        list(read_shard(io.BytesIO(table_of()()), output, GREY, 1))


# --- records ------------------------------------------------------------------------------------


@pytest.fixture
def large(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the folder of a job with shards of a million samples, of which none is made."""
    (tmp_path / "job.toml").write_text(
        'model = "digits"\n[samples]\nper_class = { "0-9" = 200_000 }\nreserve = 100\n'
        "[output]\nshard_size = 1_000_000\n"
    )
    job = job_from_file(tmp_path / "job.toml")
    storage = LocalFolder(tmp_path / "out")
    with storage.locked():
        begin(storage, open_record(job, Origin(repository=repository)))
    return tmp_path


@pytest.mark.parametrize("size", [2, 30 * 2**30])
def test_a_record_of_a_large_shard_takes_no_more_than_it_has(
    large: Path, repository: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    record = large / "out" / "shard-000000.json"
    record.touch()
    os.truncate(record, size)
    assert main(command("status", large, repository)) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("fault "))
    assert ("is damaged: " if size == 2 else "larger than 268,435,456 bytes") in line
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_record_that_could_not_be_read_again_is_not_written(
    large: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_records, "_MOST_RECORD_BYTES", 500)
    (large / "job.toml").write_text(JOB.format("webdataset"))
    job, out = job_from_file(large / "job.toml"), large / "small"
    with pytest.raises(JobError, match=r"shard 0 takes [0-9,]+ bytes, over 500: 0 seeds were"):
        run_job(job, Origin(repository=repository), str(out))
    assert {path.name for path in out.iterdir()} == {"job.json"}


@pytest.mark.parametrize("kind", range(3))
def test_a_shard_of_absurd_size_is_not_hashed(
    made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    out = shutil.copytree(made[kind] / "out", tmp_path / "out")
    storage = LocalFolder(out)
    record = read_job(storage)
    found = read_shard_record(storage, record, 0)
    os.truncate(out / found.file, 20 * 2**30)
    changed = found.model_copy(update={"size": 20 * 2**30, "seal": ""}).sealed()
    (out / record.record_file(0)).write_bytes(changed.as_bytes())
    monkeypatch.setattr(LocalFolder, "sha256", None)
    fault = "its file has 21,474,836,480 bytes; 10 samples take at most "
    with pytest.raises(JobError, match=fault):
        check_shard(storage, record, 0)
    assert fault in verify_shard(str(out), record, 0)[1][0]


@pytest.mark.parametrize("fact", [{"pid": 10**4000}, {"pid": -1}, {"host": "x" * 3000}])
def test_a_lock_of_no_process_that_there_can_be_names_nobody(fact: dict[str, Any]) -> None:
    owner = identity()
    assert owner_in(json.dumps(owner).encode()) == owner
    assert owner_in(json.dumps({**owner, **fact}).encode()) is None


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
