"""Workers that die, and a command that dies before them."""

import os
import signal

from jobs.runs import (
    JobRun,
    children_of,
    end,
    is_running,
    kill,
    needs_strace,
    traced,
    tree,
    workers_of,
)
from running_server import wait_until

from latentry.synthesis.records import JOB_FILE
from latentry.synthesis.storage.lock import LOCK_FILE


def test_a_killed_command_leaves_no_worker_and_the_next_one_takes_over_at_once(
    crowd: JobRun, expected: dict[str, bytes]
) -> None:
    process = crowd.start()
    try:
        wait_until(lambda: crowd.records())
        children = children_of(process)
        assert len(workers_of(process)) == 2
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_running, children)), timeout_s=20)
    finally:
        end(process)
    assert (crowd.out / LOCK_FILE).exists()
    assert crowd.finish() == expected


def test_killed_workers_are_replaced(crowd: JobRun, expected: dict[str, bytes]) -> None:
    process = crowd.start()
    killed: set[int] = set()
    try:
        while process.poll() is None and len(killed) < 5:
            for worker in workers_of(process):
                # One for each few shards, and never one that has just come.
                if worker.pid not in killed and len(crowd.records()) > 3 * len(killed):
                    kill(worker)
                    killed.add(worker.pid)
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, message
    assert len(killed) >= 3
    assert tree(crowd.out) == expected


def test_workers_that_always_die_end_the_job_with_advice(
    crowd: JobRun, expected: dict[str, bytes]
) -> None:
    process = crowd.start()
    try:
        while process.poll() is None:
            for worker in workers_of(process):
                kill(worker)
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 1
    assert "workers died while they made shard" in message
    assert "signal 9" in message
    assert "use fewer --workers or a smaller shard_size" in message
    assert "Traceback" not in message
    assert {path.name for path in crowd.out.iterdir()} == {JOB_FILE}
    assert crowd.finish() == expected


@needs_strace
def test_ctrl_c_while_workers_write_leaves_no_temporary_file(
    crowd: JobRun, expected: dict[str, bytes]
) -> None:
    # Each sync of a worker takes its time, so that both are at one; the command itself makes four.
    process = crowd.start(prefix=traced("fsync", "fsync:delay_enter=2s:when=5+"))
    try:
        wait_until(lambda: len(list(crowd.out.glob(".tmp-shard-*"))) == 2)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == 130
    assert set(tree(crowd.out)) < set(expected)
    assert crowd.finish() == expected
