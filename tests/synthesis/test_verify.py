import dataclasses
import hashlib
import io
import itertools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from jobs.runs import flip
from jobs.samples import data_of, pixel_sha256, pixels_of_data

from latentry.contract.errors import JobError, NotFound
from latentry.contract.images import png_from_uint8
from latentry.synthesis import duplicates
from latentry.synthesis import verify as verification
from latentry.synthesis.crews import processes
from latentry.synthesis.duplicates import find_duplicates
from latentry.synthesis.job import Job
from latentry.synthesis.records import JOB_FILE, made_shards, read_job, read_shard_record
from latentry.synthesis.run import finish, run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import read_shard, shard_bytes
from latentry.synthesis.storage.local_folder import LocalFolder
from latentry.synthesis.verify import JobVerdict, verify_job

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

# psi 0 is the average image, whatever the seed: half of the samples are equal.
JOB = Job.model_validate(
    {
        "model": "mapped",
        "samples": {"seeds": "0-59"},
        "inputs": {"class_label": 2, "truncation_psi": {"choice": [0, 1]}},
        "output": {"shard_size": 9},
    }
)


@pytest.fixture(scope="module")
def origin(repository: Path) -> Origin:
    return Origin(repository=repository)


@pytest.fixture(scope="module")
def made(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole job; no test may change it."""
    out = tmp_path_factory.mktemp("verification") / "out"
    run_job(JOB, origin, str(out))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the job, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def verdict_of(out: Path, origin: Origin | None = None, samples: int = 60) -> JobVerdict:
    return verify_job(str(out), origin, samples=samples)


# --- duplicates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [8_000_000, 25, 7, 1])
def test_equal_images_of_all_shards_are_listed_and_no_fault(
    made: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "_HASHES_AT_ONCE", at_once)
    storage = LocalFolder(made)
    record = read_job(storage)
    psi = JOB.inputs_of(record.spec, np.arange(60), None)["truncation_psi"]
    averages = np.flatnonzero(psi == 0).tolist()
    assert 10 < len(averages) < 50
    assert find_duplicates(storage, record) == [averages]
    verdict = verdict_of(made)
    assert verdict.duplicates == [averages]
    assert verdict.problems == []
    shown, more = ", ".join(map(str, averages[:20])), f", and {len(averages) - 20} more"
    assert next(verdict.lines()) == f"the same image: samples {shown}{more}"


@pytest.mark.parametrize("at_once", [100, 5])
def test_several_groups_come_in_the_order_of_the_job(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """The same seeds twice, with another psi each: no group but those that are equal by pixels."""
    monkeypatch.setattr(duplicates, "_HASHES_AT_ONCE", at_once)
    run_job(JOB, origin, str(tmp_path / "out"))
    storage = LocalFolder(tmp_path / "out")
    record = read_job(storage)
    # A shard's record with the hashes of its neighbour: groups of two across shards.
    first, second = (read_shard_record(storage, record, number) for number in (0, 1))
    count = min(len(first.seeds), len(second.seeds))
    sha256 = [hashlib.sha256(bytes([place])).hexdigest() for place in range(count)]
    for shard in (first, second):
        rest = [hashlib.sha256(b"%d" % i).hexdigest() for i in shard.indices[count:]]
        forged = shard.model_copy(update={"sample_sha256": (*sha256, *rest)})
        storage.write(record.record_file(shard.shard), forged.sealed().as_bytes())
    groups = find_duplicates(storage, record)
    pairs = [list(pair) for pair in zip(first.indices, second.indices, strict=False)]
    assert [group for group in groups if len(group) == 2 and group[0] < count] == pairs[:count]
    assert groups == sorted(groups)


# --- drawn again --------------------------------------------------------------------------------


def test_every_sample_may_be_drawn_again(made: Path, origin: Origin) -> None:
    verdict = verdict_of(made, origin, samples=1000)
    assert (verdict.drawn_again, verdict.samples, verdict.shards) == (60, 60, 7)
    assert list(verdict.lines())[-1] == (
        "verified: 60 samples in 7 shards, 60 drawn again and equal"
    )


def test_so_many_are_drawn_as_are_asked_for(made: Path, origin: Origin) -> None:
    assert verdict_of(made, origin, samples=11).drawn_again == 11
    assert verdict_of(made).drawn_again == 0


def test_the_verdict_is_the_same_with_several_processes(made: Path) -> None:
    told: list[int] = []
    alone = verify_job(str(made), None)
    together = verify_job(str(made), None, workers=2, progress=told.append)
    assert together == alone
    assert sum(told) == 60


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_several_processes_share_nothing_that_a_kill_would_leave(made: Path) -> None:
    def semaphores() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line for line in lines if "/dev/shm/sem." in line}

    before, during = semaphores(), set()
    verify_job(str(made), None, workers=2, progress=lambda _: during.update(semaphores()))
    assert during <= before


def test_a_process_that_was_killed_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_and_kill(*arguments: Any) -> Any:
        process, connection = processes.start_worker(*arguments)
        process.kill()
        return process, connection

    monkeypatch.setattr(verification, "start_worker", start_and_kill)
    with pytest.raises(JobError, match="a process that verified was killed; when memory is short"):
        verify_job(str(made), None, workers=2)


Forge = Callable[[], int]


@pytest.fixture
def forge(out: Path) -> Forge:
    """Return what changes one pixel of a sample, with every hash that covers it."""

    def change_a_pixel() -> int:
        storage = LocalFolder(out)
        record = read_job(storage)
        made = read_shard_record(storage, record, 3)
        output = record.job.output
        with storage.open(made.file, size=made.size) as file:
            samples = list(read_shard(file, output, record.spec, len(made.seeds)))
        pixels = pixels_of_data(samples[2].data, output, record.spec).copy()
        pixels[0, 0] ^= 1
        samples[2] = dataclasses.replace(
            samples[2],
            sha256=pixel_sha256(pixels),
            data=data_of(pixels, output, record.spec),
        )
        typed = [
            dataclasses.replace(
                sample,
                inputs={
                    "class_label": np.int64(sample.inputs["class_label"]),
                    "truncation_psi": np.float32(sample.inputs["truncation_psi"]),
                },
            )
            for sample in samples
        ]
        data = shard_bytes(typed, output, record.spec, record.model_digest)
        hashes = tuple(sample.sha256 for sample in typed)
        changes = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "sample_sha256": hashes,
        }
        storage.write(made.file, data)
        forged = made.model_copy(update=changes).sealed()
        storage.write(record.record_file(3), forged.as_bytes())
        settled = {
            shard.shard: hashlib.sha256(shard.as_bytes()).digest()
            for shard in made_shards(storage, record)
        }
        finish(storage, record, settled)
        return samples[2].index

    return change_a_pixel


def test_a_sample_that_the_model_did_not_draw_is_found_by_drawing_again(
    out: Path, origin: Origin, forge: Forge
) -> None:
    index = forge()
    assert verdict_of(out).problems == []  # every hash fits
    verdict = verdict_of(out, origin)
    assert verdict.problems == [
        f"sample {index} (seed {index}) comes out different when it is drawn again"
    ]
    assert verdict.drawn_again == 59
    assert verdict.as_json()["verified"] is False
    assert list(verdict.lines())[-1].startswith("faults: 60 samples in 7 shards, 59 drawn again")


def test_another_engine_class_is_a_note(
    out: Path, origin: Origin, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge()
    monkeypatch.setattr(
        "latentry.serving.runtime.local.expected_class", lambda build: "tensorrt-10-fp32-sm90"
    )
    verdict = verdict_of(out, origin)
    assert verdict.problems == []
    assert verdict.drawn_again == 59
    (note,) = verdict.notes
    assert "1 samples, drawn by tensorrt-10-fp32-sm90, another engine class" in note
    assert list(verdict.lines())[-1].startswith("verified: ")


def test_what_another_model_drew_is_not_judged(out: Path, tmp_path: Path) -> None:
    (tmp_path / "model_repository").mkdir()
    with pytest.raises((NotFound, JobError), match="holds no entry|mapped"):
        verdict_of(out, Origin(repository=tmp_path / "model_repository"))


# --- faults -------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_in_every_file(made: Path, tmp_path: Path) -> None:
    for name in sorted(path.name for path in made.iterdir()):
        out = Path(shutil.copytree(made, tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        size = (out / name).stat().st_size
        for place in {size // 3, size // 2, size - 20}:
            before = (out / name).read_bytes()
            flip(out / name, place)
            try:
                problems = verdict_of(out).problems
            except JobError as error:  # job.json itself is damaged
                problems = [str(error)]
            assert problems, (name, place)
            assert name in " ".join(problems), (name, problems)
            (out / name).write_bytes(before)
        assert verdict_of(out).problems == []


def test_what_is_missing_or_does_not_belong_is_named(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    (out / "shard-000002.tar").unlink()
    problems = verdict_of(out).problems
    assert any("shard-000002.tar cannot be read: No such file" in text for text in problems)
    assert f"{out}/notes.txt does not belong to the job" in problems
    (out / "shard-000002.json").unlink()
    problems = verdict_of(out).problems
    assert any(text.startswith("1 of 7 shards are missing, the first is ") for text in problems)
    (out / "index.json").unlink()
    (out / "contact-sheet.png").unlink()
    problems = verdict_of(out).problems
    assert any("has no index.json; 9 samples are missing" in text for text in problems)


def test_swapped_shards_are_found(out: Path) -> None:
    for suffix in ("tar", "json"):
        one, two = (out / f"shard-00000{number}.{suffix}" for number in (1, 2))
        one.rename(out / "third")
        two.rename(one)
        (out / "third").rename(two)
    assert verdict_of(out).problems


def test_many_faults_are_not_all_shown() -> None:
    verdict = JobVerdict(problems=[f"p{n}" for n in range(30)], duplicates=[[0, 1]] * 30)
    lines = list(verdict.lines())
    assert lines[0] == "fault: p0"
    assert lines[20] == "and 10 more"
    assert "and 10 more groups of equal images" in lines
    assert len(verdict.as_json()["problems"]) == 30


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="holds no job.json; give the folder of a job"):
        verdict_of(tmp_path)


def test_a_sample_is_found_in_its_shard(made: Path) -> None:
    storage = LocalFolder(made)
    record = read_job(storage)
    for number in range(record.shards):
        data = io.BytesIO(storage.read(record.shard_file(number)))
        size = record.plan.size(number)
        found = read_shard(data, record.job.output, record.spec, size)
        samples: list[Sample] = list(found)
        assert [record.plan.shard_of(sample.index) for sample in samples] == [number] * len(samples)
    sizes = [record.plan.size(number) for number in range(record.shards)]
    assert list(itertools.accumulate(sizes))[-1] == 60


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


def told_of(out: Path) -> str:
    """Return all that ``verify`` says of a folder."""
    try:
        verdict: JobVerdict = verify_job(str(out), None)
    except JobError as error:
        return str(error)
    return "\n".join(verdict.problems)


def test_any_damage_is_found(whole: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    random = Random(11)
    assert told_of(whole) == ""
    for turn in range(100):
        out = tmp_path / str(turn)
        shutil.copytree(whole, out)
        name, hashes = damage(out, random)
        message = told_of(out)
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
    message = told_of(out)
    assert f"{out}/contact-sheet.png was changed" in message
    assert hashlib.sha256(data).hexdigest() in message
