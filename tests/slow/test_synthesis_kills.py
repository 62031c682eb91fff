"""300 kills, every crash point, every full disk, flat memory: `pytest -m slow tests/slow`."""

import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    kill_until_done,
    local_run,
    needs_strace,
    run_here,
    traced,
    tree,
    work_seconds,
    workers_of,
    write_job,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

KILLS = 300


@pytest.fixture(scope="module")
def expected(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a job that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_job(folder), folder / "out", repository)
    return tree(folder / "out")


@pytest.fixture
def lanes(repository: Path, tmp_path: Path) -> list[JobRun]:
    """Return the same job into one folder for each core, to run side by side."""
    path = write_job(tmp_path)
    count = len(os.sched_getaffinity(0))
    return [local_run(path, tmp_path / f"out-{lane}", repository) for lane in range(count)]


@pytest.mark.parametrize("workers", [1, 2])
def test_random_kills(lanes: list[JobRun], expected: dict[str, bytes], workers: int) -> None:
    run = JobRun(lanes[0].job, lanes[0].out, (*lanes[0].options[:-1], str(workers)))
    kills, random = Kills(work_seconds(run)), Random(workers)
    while kills.kills < KILLS / 2:
        kill_until_done(run, expected, random, kills)
    report(f"random kills, {workers} workers", kills)
    check(kills, workers)


@needs_strace
def test_every_crash_point(lanes: list[JobRun], tmp_path: Path, expected: dict[str, bytes]) -> None:
    points = [crash_points(lane, tmp_path / f"log-{lane.out.name}") for lane in lanes]
    assert len(points[0]) > 12 * SHARDS
    parts = [Kills() for _ in lanes]

    def crash_each(lane: int) -> None:
        for call, turn in points[lane][lane :: len(lanes)]:
            crash_at(lanes[lane], call, turn, expected, parts[lane])

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(crash_each, range(len(lanes))))
    kills = parts[0]
    for part in parts[1:]:
        kills.add(part)
    report("crash points", kills)
    assert kills.kills == len(points[0])
    check(kills, 1)


@needs_strace
@pytest.mark.parametrize(
    ("fault", "code"), [("write:error=ENOSPC", 75), ("fsync:error=EIO", 0), ("rename:error=EIO", 0)]
)
def test_a_fault_at_every_turn(
    lanes: list[JobRun], tmp_path: Path, expected: dict[str, bytes], fault: str, code: int
) -> None:
    call = fault.partition(":")[0]
    points = crash_points(lanes[0], tmp_path / "log")
    turns = [turn for name, turn in points if name == call]
    # The first two syncs are of the new folder's parent and of the lock, which are not tried again;
    # after the files' writes comes the command's answer.
    files = 2 * SHARDS + 3
    turns = {"fsync": turns[2:], "write": turns[:files]}.get(call, turns)
    assert len(turns) >= files

    def fail_at(job: JobRun, turn: int) -> None:
        done = job.run(prefix=traced(call, f"{fault}:when={turn}"))
        assert done.returncode == code, done.stderr
        assert not set(tree(job.out)) - set(expected)
        assert job.finish() == expected
        shutil.rmtree(job.out)

    def fail_each(lane: int) -> None:
        for turn in turns[lane :: len(lanes)]:
            fail_at(lanes[lane], turn)

    with ThreadPoolExecutor(len(lanes)) as pool:
        list(pool.map(fail_each, range(len(lanes))))
    print(f"\n{fault}: {len(turns)} turns, exit {code}, 0 files differ")  # noqa: T201


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_job(repository: Path, tmp_path: Path, workers: int) -> None:
    peaks = []
    for count in (200, 4_000):
        text = f'model = "digits"\n[samples]\nper_class = {{ "0-9" = {count} }}\n'
        path = write_job(tmp_path, text + "[output]\nshard_size = 500\n", f"{count}.toml")
        run = local_run(path, tmp_path / str(count), repository, workers=workers)
        peaks.append(peak_bytes(run))
    print(f"\n{workers} workers, 2,000 and 40,000 samples: peak bytes {peaks}")  # noqa: T201
    for small, large in zip(*peaks, strict=True):
        assert large < 1.1 * small + 5e6


def peak_bytes(run: JobRun) -> tuple[int, int]:
    """Return the peak memory of a command, and of the largest worker below it."""
    peaks: Counter[int] = Counter()
    process = run.start()
    try:
        while process.poll() is None:
            for pid in (process.pid, *(worker.pid for worker in workers_of(process))):
                # The kernel keeps the peak itself, so looking now and then is enough.
                with suppress(OSError):
                    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                    peaks[pid] = max(peaks[pid], int(found[1]) * 1024 if found else 0)
    finally:
        end(process)
    assert process.returncode == 0
    mine = peaks.pop(process.pid)
    return mine, max(peaks.values(), default=0)


def report(what: str, kills: Kills) -> None:
    """Print the figures."""
    print(  # noqa: T201
        f"\n{what}: {kills.kills} kills, {kills.runs} runs, {len(kills.differing)} files differ, "
        f"{len(kills.extra)} extra, at most {kills.most_redone} shards redone by a kill, "
        f"{kills.touched} made files touched"
    )


def check(kills: Kills, workers: int) -> None:
    """Check that nothing was lost and little redone."""
    assert not kills.differing | kills.extra
    assert kills.most_redone <= workers
    assert kills.touched == 0
