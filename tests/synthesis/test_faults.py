"""What a synthesis job does when processes, disks and models fail; real processes throughout.

tests/slow/test_synthesis_kills.py does the same things many more times.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from synthesis_jobs import (
    DIGITS,
    LOCK_FILE,
    SHARDS,
    STRACE,
    JobRun,
    Kills,
    children_of,
    crash_at,
    crash_points,
    end,
    is_running,
    kill,
    kill_until_done,
    local_run,
    stamps,
    traced,
    tree,
    wait_until,
    work_seconds,
    workers_of,
    write_job,
)

from latentry.clients import Client
from latentry.contract.errors import InvalidOutput, JobError
from latentry.contract.images import png_from_uint8
from latentry.serving.runtime import local
from latentry.serving.runtime.local import LocalTransport
from latentry.synthesis.job import job_from_file
from latentry.synthesis.records import JOB_FILE, Totals
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import JobVerdict, verify_job

needs_strace = pytest.mark.skipif(STRACE is None, reason="strace is not installed")


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> JobRun:
    """Return a run of 24 small shards in the command's own process."""
    return local_run(write_job(tmp_path), tmp_path / "out", repository)


@pytest.fixture
def crowd(job: JobRun) -> JobRun:
    """Return the same with two worker processes."""
    return JobRun(job.job, job.out, (*job.options[:-1], "2"))


@pytest.fixture(scope="module")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same job, made without any trouble."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_job(folder), folder / "out", repository)
    return folder / "out"


@pytest.fixture(scope="module")
def expected(whole: Path) -> dict[str, bytes]:
    """Return its files."""
    return tree(whole)


def run_here(job: Path, out: Path, repository: Path) -> Totals:
    """Make a job in this process."""
    return run_job(job_from_file(job), Origin(repository=repository), str(out))


# Kills


@pytest.mark.parametrize("workers", [1, 2])
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


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_behind(
    job: JobRun, crowd: JobRun, expected: dict[str, bytes], workers: int
) -> None:
    run = (job, crowd)[workers - 1]
    process = run.start()
    try:
        wait_until(lambda: run.records())
        children = children_of(process)
        os.killpg(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=120)
        wait_until(lambda: not any(map(is_running, children)))
    finally:
        end(process)
    assert process.returncode == 130
    assert message == f"stopped: what is made stays in {run.out}; the same command goes on\n"
    assert set(tree(run.out)) < set(expected)
    assert run.finish() == expected


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


# The lock


def test_a_second_command_is_refused_at_once(job: JobRun, expected: dict[str, bytes]) -> None:
    with LocalFolder(job.out).locked():  # for as long as anybody may wait
        done = job.run("--take-over")
        assert done.returncode == 1
        assert f"is locked by process {os.getpid()} on" in done.stderr
    assert job.finish() == expected


@pytest.mark.parametrize("change", ["host", "boot", "namespace"])
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


# The disk


@needs_strace
@pytest.mark.parametrize("turn", [1, 2, 20])
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
    "injected", ["fsync:error=EIO:when=7+", "rename:error=EIO:when=3+", "write:error=EIO:when=5..7"]
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


# NaN


def broken_seeds(repository: Path, count: int) -> list[int]:
    """Return which of the first ``count`` seeds break the model ``breaking``."""
    found: list[int] = []
    with Client(transport=LocalTransport(repository, ("breaking",))) as client:
        for seed in range(0, count, 256):
            seeds = np.arange(seed, seed + 256)
            while len(seeds):
                try:
                    client.generate("breaking", seeds=seeds)
                    break
                except InvalidOutput as error:
                    found += error.seeds
                    seeds = np.setdiff1d(seeds, error.seeds)
    return sorted(found)


@pytest.fixture(scope="module")
def broken(repository: Path) -> list[int]:
    """Return which of the first seeds break the model ``breaking``."""
    found = broken_seeds(repository, 10_240)
    assert len(found) > 3
    return found


@pytest.mark.parametrize(("before", "size"), [(0, 10), (9, 10), (5, 1000), (0, 1)])
def test_nan_is_replaced_from_the_reserve(
    repository: Path, tmp_path: Path, broken: list[int], before: int, size: int
) -> None:
    first = broken[0] - before
    last = broken[2] if size == 1000 else broken[0] + 20
    text = f'model = "breaking"\n[samples]\nseeds = "{first}-{last}"\nreserve = 1\n'
    path, out = write_job(tmp_path, f"{text}[output]\nshard_size = {size}\n"), tmp_path / "out"
    totals = run_here(path, out, repository)
    assert totals.samples == last - first + 1
    assert set(totals.rejected) == {"NaN or infinity"}
    records = [json.loads(record.read_bytes()) for record in out.glob("shard-*.json")]
    drawn = [seed for record in records for seed in record["seeds"]]
    rejected = {item["seed"] for record in records for item in record["rejected"]}
    assert rejected >= {seed for seed in broken if first <= seed <= last}
    assert not set(drawn) & {*broken, *rejected}
    assert len(set(drawn)) == len(drawn) == totals.samples
    assert not verify_job(str(out), Origin(repository=repository)).problems


def test_a_used_up_reserve_leaves_the_job_incomplete(
    repository: Path, tmp_path: Path, broken: list[int]
) -> None:
    text = f'model = "breaking"\n[samples]\nreserve = 0\nseeds = "0-{broken[2]}"\n'
    path = write_job(tmp_path, text + "[output]\nshard_size = 500\n")
    run = local_run(path, tmp_path / "out", repository)
    done = run.run()
    assert done.returncode == 1
    assert "error: incomplete: 3 missing, the shards' reserves are used up" in done.stderr
    report = json.loads(done.stdout)
    assert report["missing"] == {"": 3}
    assert report["samples"] == broken[2] + 1 - 3
    assert not report["whole"]
    before = stamps(run.out)
    again = run.run()
    assert (again.returncode, again.stderr) == (1, done.stderr)
    assert json.loads(again.stdout) == report
    assert stamps(run.out) == before
    assert "index.json" not in before
    verdict = verify_job(str(run.out), None)
    assert verdict.problems == [f"{run.out} has no index.json; 3 samples are missing"]


# Going on with something else


def refusal(job: Path, out: Path, repository: Path) -> str:
    """Return why a job does not go on, having checked that nothing was touched."""
    before = stamps(out)
    with pytest.raises(JobError, match="was started differently") as refused:
        run_here(job, out, repository)
    assert stamps(out) == before
    return str(refused.value)


@pytest.fixture
def half(repository: Path, tmp_path: Path, whole: Path) -> Path:
    """Return the folder of the job with half of its shards."""
    out = tmp_path / "out"
    out.mkdir()
    for path in whole.glob("*.json"):
        if path.name == JOB_FILE or path.name < "shard-000012":
            for file in {path, path.with_suffix(".tar")} & set(whole.iterdir()):
                shutil.copy(file, out)
    (out / "index.json").unlink(missing_ok=True)
    return out


def test_another_engine_class_is_refused(
    repository: Path, tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "engine_class", lambda: "tensorrt-10-fp16")
    message = refusal(write_job(tmp_path), half, repository)
    assert "engine_class was" in message
    assert 'here it is "tensorrt-10-fp16"' in message


def test_any_engine_class_is_allowed_where_the_job_says_so(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_job(tmp_path, 'engine_class = "any"\n' + DIGITS), tmp_path / "any"
    origin = Origin(repository=repository)
    run_job(job_from_file(path), origin, str(out), limit=120)
    monkeypatch.setattr(local, "engine_class", lambda: "tensorrt-10-fp16")
    assert run_here(path, out, repository).samples == 240
    records = [json.loads(path.read_bytes()) for path in out.glob("shard-*.json")]
    assert sum(record["engine_class"] == "tensorrt-10-fp16" for record in records) == 12
    assert not verify_job(str(out), origin).problems


def test_another_encoder_is_refused(
    repository: Path, tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zlib.ZLIB_RUNTIME_VERSION", "9.9")
    assert 'here it is "9.9"' in refusal(write_job(tmp_path), half, repository)


def test_a_changed_job_is_refused(repository: Path, tmp_path: Path, half: Path) -> None:
    changed = DIGITS.replace("= 24", "= 25")
    message = refusal(write_job(tmp_path, changed), half, repository)
    assert "job.samples.per_class.0-9 was 24, here it is 25" in message


def write_classifier(path: Path, bias: float) -> None:
    """Write a network that takes every image for class 3."""
    weight = np.zeros((1, 10), np.float32)
    shift = np.full(10, bias, np.float32)
    shift[3] = 9
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "shift"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(shift, "shift"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_a_changed_classifier_is_refused(repository: Path, tmp_path: Path) -> None:
    text = 'model = "digits"\n[samples]\nper_class = { "3" = 40 }\n[output]\nshard_size = 10\n'
    text += '[[filters]]\nkind = "classifier"\nfile = "classifier.onnx"\n'
    path, out = write_job(tmp_path, text), tmp_path / "out"
    write_classifier(tmp_path / "classifier.onnx", 0)
    run_job(job_from_file(path), Origin(repository=repository), str(out), limit=20)
    before = hashlib.sha256((tmp_path / "classifier.onnx").read_bytes()).hexdigest()
    write_classifier(tmp_path / "classifier.onnx", 1)
    message = refusal(path, out, repository)
    assert f'files.classifier.onnx was "{before}"' in message
    write_classifier(tmp_path / "classifier.onnx", 0)
    assert run_here(path, out, repository).samples == 40


# Damage


def test_a_damaged_job_file_is_named(repository: Path, tmp_path: Path, half: Path) -> None:
    (half / JOB_FILE).write_text("{")
    with pytest.raises(JobError, match=rf"{half}/{JOB_FILE} is damaged"):
        run_here(write_job(tmp_path), half, repository)


def test_a_damaged_shard_does_not_get_into_the_contact_sheet(
    repository: Path, tmp_path: Path, half: Path, expected: dict[str, bytes]
) -> None:
    shard = half / "shard-000000.tar"
    shard.write_bytes(b"x" * shard.stat().st_size)
    run_here(write_job(tmp_path), half, repository)
    assert tree(half) == expected


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


def damage(out: Path, random: Random) -> tuple[str, list[str]]:
    """Do something to a job's folder; return the file and the hashes to expect in a message."""
    path = random.choice(sorted(out.iterdir()))
    data = path.read_bytes()
    kind = random.choice(["bit", "byte", "truncate", "append", "space", "swap", "delete", "add"])
    if kind == "delete" and path.name != JOB_FILE:
        path.unlink()
        return path.name, []
    if kind == "add":
        (out / f"{path.name}.bak").write_bytes(data)
        return f"{path.name}.bak", []
    if kind == "swap":
        other = random.choice(
            sorted({p for p in out.iterdir() if p.suffix == path.suffix} - {path})
        )
        if path.suffix == ".tar" or "shard" in path.name and "shard" in other.name:
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return path.name, []
    changed = bytearray(data)
    if kind == "truncate":
        del changed[random.randrange(len(changed)) :]
    elif kind == "append":
        changed += random.randbytes(random.randint(1, 600))
    elif kind == "space":
        changed += b" "
    elif kind == "byte":
        changed[random.randrange(len(changed))] ^= random.randint(1, 255)
    else:
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    path.write_bytes(changed)
    hashes = [hashlib.sha256(content).hexdigest() for content in (data, bytes(changed))]
    return path.name, hashes


def verdict_of(out: Path) -> str:
    """Return all that ``verify`` says of a folder."""
    try:
        verdict: JobVerdict = verify_job(str(out), None)
    except JobError as error:
        return str(error)
    return "\n".join(verdict.problems)


def test_any_damage_is_found(whole: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    random = Random(11)
    assert verdict_of(whole) == ""
    for turn in range(100):
        out = tmp_path / str(turn)
        shutil.copytree(whole, out)
        name, hashes = damage(out, random)
        message = verdict_of(out)
        assert name in message
        # What is no longer understood at all, or has another size, has no hash to expect.
        if not re.search("is damaged|bytes, its record says", message):
            assert all(sha256 in message for sha256 in hashes), (name, message)
        shutil.rmtree(out)


def test_another_contact_sheet_is_found(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    data = png_from_uint8(np.zeros((64, 64, 1), np.uint8))
    (out / "contact-sheet.png").write_bytes(data)
    message = verdict_of(out)
    assert f"{out}/contact-sheet.png was changed" in message
    assert hashlib.sha256(data).hexdigest() in message
