"""Synthesis jobs in processes of their own, what is done to them, and what they leave."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil
import pytest
from running_server import LATENTRY, wait_until

from latentry.synthesis.job import job_from_file
from latentry.synthesis.records import Totals
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.storage.lock import LOCK_FILE

STRACE = shutil.which("strace")
needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed")
SHARDS = 24

DIGITS = """
model = "digits"
[samples]
per_class = { "0-9" = 24 }
[output]
shard_size = 10
"""


@dataclass(frozen=True)
class JobRun:
    """``latentry synthesize`` of one job into one folder."""

    job: Path
    out: Path
    options: tuple[str, ...]

    def command(self, *options: str) -> list[str]:
        """Return the command line."""
        fixed = [str(LATENTRY), "synthesize", str(self.job), "--out", str(self.out), "--json"]
        return [*fixed, *self.options, *options]

    def run(
        self, *options: str, prefix: Sequence[str] = (), timeout_s: float = 240
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return subprocess.run(
            [*prefix, *self.command(*options)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment(traced=bool(prefix)),
        )

    def start(self, *options: str, prefix: Sequence[str] = ()) -> "subprocess.Popen[str]":
        """Start it in a process group of its own."""
        return subprocess.Popen(
            [*prefix, *self.command(*options)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment(traced=bool(prefix)),
        )

    def finish(self, *options: str) -> dict[str, bytes]:
        """Run it to its end, which must be a good one; return the folder's files."""
        done = self.run(*options)
        assert done.returncode == 0, done.stderr
        return tree(self.out)

    def started(self) -> bool:
        """Whether it has taken its lock, or had before."""
        return (self.out / LOCK_FILE).exists()

    def records(self) -> list[Path]:
        """Return the records of the shards that count as made."""
        return sorted(self.out.glob("shard-*.json"))

    def made_files(self) -> set[str]:
        """Return the names of the shards that count as made, and of their records."""
        records = self.records()
        return {p.name for p in records} | {p.with_suffix(".tar").name for p in records}

    def begun(self) -> int:
        """Return how many shards lie there in part: they are made again."""
        made = {path.stem for path in self.records()}
        stems = re.findall(r"shard-\d+", " ".join(os.listdir(self.out))) if self.started() else []
        return len(set(stems) - made)


@dataclass
class Kills:
    """What killing came to.

    Attributes:
        work_s: Seconds that the job takes undisturbed.
        kills: Kills.
        runs: Jobs that were killed until they were done.
        most_redone: Shards that one kill cost, at most.
        touched: Files of made shards that were written again, or lost.
        differing: Files that came out otherwise than undisturbed.
        extra: Files that do not belong there.
    """

    work_s: float = 0.0
    kills: int = 0
    runs: int = 0
    most_redone: int = 0
    touched: int = 0
    differing: set[str] = field(default_factory=set)
    extra: set[str] = field(default_factory=set)

    def count_kill(self, job: JobRun) -> None:
        """Count a kill and the work that it cost."""
        self.kills += 1
        self.most_redone = max(self.most_redone, job.begun())

    def count_touched(
        self, before: dict[str, tuple[int, int]], job: JobRun, made: set[str]
    ) -> None:
        """Count which of the files that were ``made`` are not what they were ``before``."""
        after = stamps(job.out) if job.out.exists() else {}
        self.touched += sum(before[name] != after.get(name) for name in made)

    def add(self, other: "Kills") -> None:
        """Count what another counted."""
        self.kills += other.kills
        self.runs += other.runs
        self.most_redone = max(self.most_redone, other.most_redone)
        self.touched += other.touched
        self.differing |= other.differing
        self.extra |= other.extra

    def compare(self, found: dict[str, bytes], expected: dict[str, bytes]) -> None:
        """Compare a finished folder with one that nobody disturbed."""
        self.runs += 1
        self.extra |= set(found) - set(expected)
        self.differing |= {name for name, data in expected.items() if found.get(name) != data}


def environment(*, traced: bool = False) -> dict[str, str]:
    """Return this process's, with room for a message on one line and without byte code to write.

    The latter would shift the system calls that are to fail; so would what measures coverage, which
    is left out where they are ``traced``.
    """
    variables = {**os.environ, "COLUMNS": "1000", "PYTHONDONTWRITEBYTECODE": "1"}
    if traced:
        variables.pop("COVERAGE_PROCESS_CONFIG", None)
    return variables


def write_job(folder: Path, text: str = DIGITS, name: str = "job.toml") -> Path:
    """Write a job's file."""
    path = folder / name
    path.write_text(text)
    return path


def local_run(job: Path, out: Path, repository: Path, *options: str, workers: int = 1) -> JobRun:
    """Return the run of a job without a server."""
    fixed = ("--draw-with", "local", "--repository", str(repository), "--workers", str(workers))
    return JobRun(job, out, (*fixed, *options))


def run_here(job: Path, out: Path, repository: Path) -> Totals:
    """Make a job in this process."""
    return run_job(job_from_file(job), Origin(repository=repository), str(out))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, whatever its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what changes when a file is written again, by name."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def children_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return every process below one."""
    try:
        found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the processes below one that make shards."""
    return [child for child in children_of(process) if "spawn_main" in " ".join(_cmdline(child))]


def kill(process: psutil.Process) -> None:
    """Kill a process that may have ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def is_running(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended and that nobody has reaped yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def end(process: "subprocess.Popen[str]") -> None:
    """Kill a process with its group, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def interrupt_and_go_on(job: JobRun, expected: dict[str, bytes]) -> None:
    """Send a job Ctrl-C at its first shard: no process is left, and the same command finishes."""
    process = job.start()
    try:
        wait_until(lambda: job.records())
        children = children_of(process)
        os.killpg(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=120)
        wait_until(lambda: not any(map(is_running, children)))
    finally:
        end(process)
    assert process.returncode == 130
    assert message == f"stopped: what is made stays in {job.out}; the same command goes on\n"
    assert set(tree(job.out)) < set(expected)
    assert job.finish() == expected


def run_killed(job: JobRun, random: Random, within_s: float, kills: Kills) -> bool:
    """Start a job and kill it at a random moment; return whether it had ended before.

    Args:
        job: The job.
        random: Says when, and whether the whole group is killed or only the command itself.
        within_s: Seconds after its lock.
        kills: Where the kill is counted.
    """
    before = stamps(job.out) if job.out.exists() else {}
    made = job.made_files()
    process = job.start()
    try:
        # One in ten is killed before it has begun.
        if random.random() < 0.9:
            wait_until(lambda: job.started() or process.poll() is not None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, within_s))
        children = children_of(process)
        if ended := process.poll() is not None:
            assert process.returncode == 0, process.stderr and process.stderr.read()
        elif random.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_running, children)))
    finally:
        end(process)
    if not ended:
        kills.count_kill(job)
    kills.count_touched(before, job, made)
    return ended


def kill_until_done(
    job: JobRun, expected: dict[str, bytes], random: Random, kills: Kills, at_most: int = 1000
) -> None:
    """Kill a job over and over until it is done; compare what it made.

    After ``at_most`` kills it is left alone.
    """
    within_s, last = kills.work_s, kills.kills + at_most
    while kills.kills < last:
        there = len(job.records())
        if run_killed(job, random, within_s, kills):
            break
        if len(job.records()) == there:
            within_s *= 1.2  # the machine is slower than it was
    kills.compare(job.finish(), expected)
    shutil.rmtree(job.out)


def work_seconds(job: JobRun) -> float:
    """Return the seconds that a job takes from its lock to its end; nothing is left of it."""
    process = job.start()
    wait_until(lambda: job.started())
    seconds = wait_until(lambda: process.poll() is not None)
    end(process)
    shutil.rmtree(job.out)
    return seconds


def traced(calls: str, *injections: str, log: Path | None = None) -> list[str]:
    """Return what to put before a command so that strace does something to its system calls."""
    assert STRACE is not None
    # No --seccomp-bpf: strace 6.1 then forgets the signals that it is to send.
    prefix = [STRACE, "-f", "-qq", "-o", str(log or os.devnull)]
    prefix += ["-e", f"trace={calls}", "-e", "signal=none"]
    for injection in injections:
        prefix += ["-e", f"inject={injection}"]
    return prefix


CRASH_CALLS = (
    *("mkdir", "flock", "ftruncate", "pwrite64", "fsync", "openat", "write", "rename", "unlink"),
    "getdents64",
)


def crash_points(job: JobRun, log: Path) -> list[tuple[str, int]]:
    """Return each system call on the job's folder: its name, and its turn among its like."""
    done = job.run(prefix=traced(",".join(CRASH_CALLS), log=log))
    assert done.returncode == 0, done.stderr
    shutil.rmtree(job.out)
    turns: Counter[str] = Counter()
    points: list[tuple[str, int]] = []
    inside = False
    lines = log.read_text().splitlines()
    thread = lines[0].split()[0]  # strace counts for each thread; files are the first one's
    for line in lines:
        match = re.match(rf"{thread} +(\w+)\(", line)
        if match is None:
            continue
        call = match[1]
        turns[call] += 1
        inside = inside or str(job.out) in line
        # What goes by descriptor is the job's from its first file on.
        by_descriptor = call not in ("openat", "getdents64")
        if (inside and by_descriptor) or str(job.out) in line:
            points.append((call, turns[call]))
    return points


def crash_at(job: JobRun, call: str, turn: int, expected: dict[str, bytes], kills: Kills) -> None:
    """Kill a fresh run of a job as it makes one system call; run it again, and compare."""
    done = job.run(prefix=traced(call, f"{call}:signal=SIGKILL:when={turn}"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    kills.count_kill(job)
    before, made = stamps(job.out) if job.out.exists() else {}, job.made_files()
    kills.compare(job.finish(), expected)
    kills.count_touched(before, job, made)
    shutil.rmtree(job.out)


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        line: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return line
