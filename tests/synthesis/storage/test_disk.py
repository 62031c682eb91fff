"""Jobs on disks that are full or break."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs.runs import JobRun, needs_strace, traced, tree

from latentry.synthesis.storage.lock import LOCK_FILE

SLOW = pytest.mark.slow


@needs_strace
@pytest.mark.parametrize("turn", [1, *(pytest.param(n, marks=SLOW) for n in (2, 20))])
def test_a_full_disk(job: JobRun, expected: dict[str, bytes], turn: int) -> None:
    done = job.run(prefix=traced("write", f"write:error=ENOSPC:when={turn}"))
    check_full(job, done)
    assert job.finish() == expected


def check_full(job: JobRun, done: "subprocess.CompletedProcess[str]") -> None:
    """Check what a command says and leaves when the disk is full."""
    assert done.returncode == 75, done.stderr
    pattern = rf"error: no space left for {job.out}/[a-z0-9.-]+: it takes [\d,]+ bytes and "
    assert re.match(pattern + r"[\d,]+ are free, [\d,]+ short;", done.stderr)
    assert done.stderr.count("\n") == 1
    assert not list(job.out.glob(".tmp-*"))
    assert not (job.out / LOCK_FILE).exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 100 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "latentry-test", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_that_grows(
    job: JobRun, crowd: JobRun, expected: dict[str, bytes], small_disk: Path
) -> None:
    made = 0
    for run, size in ((job, 100), (crowd, 300), (job, 500), (crowd, 10_000)):
        there = JobRun(run.job, small_disk / "out", run.options)
        remount = ["mount", "-o", f"remount,size={size}k", str(small_disk)]
        subprocess.run(remount, check=True)
        done = there.run()
        assert len(there.records()) > made
        made = len(there.records())
        if done.returncode != 0:
            check_full(there, done)
    assert done.returncode == 0
    assert tree(small_disk / "out") == expected


def test_a_disk_without_room_for_the_lock(
    job: JobRun, expected: dict[str, bytes], small_disk: Path
) -> None:
    out = small_disk / "new" / "out"
    (small_disk / "filler").write_bytes(bytes(100 * 1024))
    done = JobRun(job.job, out, job.options).run()
    assert done.returncode == 75
    assert f"no space left for {out}/{LOCK_FILE}: it takes " in done.stderr
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    assert JobRun(job.job, out, job.options).finish() == expected


@needs_strace
def test_after_a_failed_fsync_the_file_is_written_again(
    job: JobRun, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    log = tmp_path / "log"
    # The folder, the lock and job.json take four; 5 is the first shard's file.
    injected = "fsync:error=EIO:when=5"
    done = job.run(prefix=traced("openat,fsync,rename", injected, log=log))
    assert done.returncode == 0, done.stderr
    assert tree(job.out) == expected
    first = [line for line in log.read_text().splitlines() if "tmp-shard-000000.tar" in line]
    assert [re.search(r"(openat|rename)\(", line)[1] for line in first] == [  # type: ignore[index]
        *("openat", "openat", "rename")
    ]
    names = re.findall(r"\.tmp-shard-000000\.tar-\w+", "\n".join(first[:2]))
    assert len(set(names)) == 2


@needs_strace
@pytest.mark.parametrize(
    "injected",
    [
        "fsync:error=EIO:when=7+",
        pytest.param("rename:error=EIO:when=3+", marks=SLOW),
        pytest.param("write:error=EIO:when=5..7", marks=SLOW),
    ],
)
def test_a_broken_disk(job: JobRun, expected: dict[str, bytes], injected: str) -> None:
    done = job.run(prefix=traced(injected.partition(":")[0], injected))
    assert done.returncode == 1
    assert re.match(
        rf"error: {job.out}/shard-00000\d\.(tar|json) cannot be written: Input/output error;",
        done.stderr,
    )
    assert done.stderr.count("\n") == 1
    assert set(tree(job.out)) < set(expected)
    assert job.finish() == expected
