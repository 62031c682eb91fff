"""Damaged and hostile job folders: one line, exit code 0 or 1, nothing hangs, little memory.

tests/slow/test_synthesis_hostile.py does the same many more times.
"""

import os
import resource
import shutil
from pathlib import Path

import pytest
from jobs.hostile import JOB, attack, check, command, make_jobs

from latentry.cli.main import main
from latentry.contract.errors import JobError
from latentry.synthesis import records as job_records
from latentry.synthesis.job import job_from_file
from latentry.synthesis.records import check_shard, read_job, read_shard_record
from latentry.synthesis.run import begin, open_record, run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import verify_shard

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


@pytest.fixture(scope="module")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a small whole job in each format."""
    return make_jobs(tmp_path_factory.mktemp("hostile"), repository)


@pytest.mark.parametrize("seed", [*range(36), 1305])
def test_whatever_is_done_to_a_folder_ends_in_a_line(
    made: list[Path], repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:  # fmt: skip
    attack(made[seed % 3], repository, tmp_path, seed, capsys)


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
