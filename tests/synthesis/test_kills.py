"""Commands that are killed, and their locks.

tests/slow/test_synthesis_kills.py does the same things many more times.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
from jobs.runs import (
    SHARDS,
    JobRun,
    Kills,
    crash_at,
    crash_points,
    end,
    interrupt_and_go_on,
    kill_until_done,
    needs_strace,
    traced,
    work_seconds,
)
from running_server import wait_until

from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.storage.lock import LOCK_FILE


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_at_any_moment(
    job: JobRun, crowd: JobRun, expected: dict[str, bytes], workers: int
) -> None:
    run = (job, crowd)[workers - 1]
    kills, random = Kills(work_seconds(run)), Random(workers)
    while kills.kills < 4:
        kill_until_done(run, expected, random, kills, at_most=4 - kills.kills)
    assert not kills.differing | kills.extra
    assert kills.most_redone <= workers
    assert kills.touched == 0


@needs_strace
@pytest.mark.slow
def test_killed_at_some_of_its_system_calls(
    job: JobRun, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    points, kills = crash_points(job, tmp_path / "log"), Kills()
    assert len(points) > 12 * SHARDS
    for call, turn in points[5 :: len(points) // 5]:
        crash_at(job, call, turn, expected, kills)
    assert kills.kills >= 5
    assert not kills.differing | kills.extra
    assert kills.most_redone <= 1
    assert kills.touched == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_behind_without_a_server(
    job: JobRun, crowd: JobRun, expected: dict[str, bytes], workers: int
) -> None:
    interrupt_and_go_on((job, crowd)[workers - 1], expected)


def test_a_second_command_is_refused_at_once(job: JobRun, expected: dict[str, bytes]) -> None:
    with LocalFolder(job.out).locked():  # for as long as anybody may wait
        done = job.run("--take-over")
        assert done.returncode == 1
        assert f"is locked by process {os.getpid()} on" in done.stderr
    assert job.finish() == expected


@pytest.mark.parametrize(
    "change",
    [
        "host",
        pytest.param("boot", marks=pytest.mark.slow),
        pytest.param("namespace", marks=pytest.mark.slow),
    ],
)
def test_a_lock_from_elsewhere_is_taken_over_on_demand_only(
    job: JobRun, expected: dict[str, bytes], change: str
) -> None:
    process = job.start()
    try:
        wait_until(lambda: job.started() and (job.out / LOCK_FILE).read_bytes())
        process.kill()
    finally:
        end(process)
    owner = json.loads((job.out / LOCK_FILE).read_bytes())
    (job.out / LOCK_FILE).write_text(json.dumps({**owner, change: "another"}))
    done = job.run()
    assert done.returncode == 1
    assert "--take-over" in done.stderr
    assert job.finish("--take-over") == expected


def test_a_process_that_got_the_same_pid_holds_no_lock(
    job: JobRun, expected: dict[str, bytes]
) -> None:
    with LocalFolder(job.out).locked():
        owner = json.loads((job.out / LOCK_FILE).read_bytes())
    (job.out / LOCK_FILE).write_text(json.dumps({**owner, "started": "1"}))
    assert job.finish() == expected


@needs_strace
def test_a_lost_shard_takes_the_index_with_it(
    job: JobRun, whole: Path, expected: dict[str, bytes]
) -> None:
    shutil.copytree(whole, job.out)
    (job.out / "shard-000003.json").unlink()
    done = job.run(prefix=traced("rename", "rename:signal=SIGKILL:when=1"))
    assert done.returncode == -signal.SIGKILL
    assert not (job.out / "index.json").exists()
    assert job.finish() == expected
