"""Verify a job's output: every hash, every sample's place, and some samples drawn again."""

import hashlib
import itertools
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from latentry.clients.client import Client
from latentry.clients.shards import Sample, pixel_sha256, read_shard
from latentry.clients.storage import Storage, storage_from_url
from latentry.clients.synthesis import (
    CONTACT_SHEET_FILE,
    INDEX_FILE,
    JOB_FILE,
    JobRecord,
    Origin,
    Progress,
    ShardRecord,
    contact_sheet,
    index_bytes,
    made_shards,
    read_job,
    read_shard_record,
)
from latentry.serving.errors import JobError, LatentryError
from latentry.serving.images import Uint8

_HASHES_AT_ONCE = 8_000_000
_SHOWN = 20


@dataclass
class Verdict:
    """What was found.

    Attributes:
        shards: Shards that were read.
        samples: Samples in them, decoded and hashed.
        problems: What is wrong, a line each; none means that all is well.
        duplicates: Indices of samples that are equal to another, grouped.
        drawn_again: Samples that were drawn again and are equal.
        notes: What is worth knowing and no fault.
    """

    shards: int = 0
    samples: int = 0
    problems: list[str] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    drawn_again: int = 0
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return everything for scripts."""
        return {"verified": not self.problems, **self.__dict__}

    def lines(self) -> Iterator[str]:
        """Yield what people read."""
        for problem in self.problems[:_SHOWN]:
            yield f"fault: {problem}"
        if len(self.problems) > _SHOWN:
            yield f"and {len(self.problems) - _SHOWN} more"
        for group in self.duplicates[:_SHOWN]:
            yield f"the same image: samples {', '.join(map(str, group))}"
        if len(self.duplicates) > _SHOWN:
            yield f"and {len(self.duplicates) - _SHOWN} more groups of equal images"
        yield from self.notes
        outcome = "faults" if self.problems else "verified"
        yield (
            f"{outcome}: {self.samples:,} samples in {self.shards:,} shards, "
            f"{self.drawn_again} drawn again and equal"
        )


def verify_job(
    out: str,
    origin: Origin | None,
    *,
    samples: int = 64,
    workers: int = 1,
    progress: Progress = lambda _: None,
) -> Verdict:
    """Verify the output of a job.

    Args:
        out: A folder, or a URL that fsspec knows.
        origin: Where samples are drawn again; None for no such check.
        samples: How many are drawn again, chosen at random.
        workers: Processes that read and hash.
        progress: Told of every sample that was read.

    Raises:
        JobError: There is no job in ``out``, or ``origin`` offers another model.
    """
    storage = storage_from_url(out)
    record = read_job(storage)
    verdict = Verdict()
    sizes = storage.sizes()
    numbers = [n for n in range(record.shards) if record.record_file(n) in sizes]
    for count, problems in _verify_shards(out, record, numbers, workers):
        verdict.shards += 1
        verdict.samples += count
        verdict.problems += problems
        progress(count)
    verdict.problems += _verify_whole(storage, record, sizes)
    if not verdict.problems:
        verdict.duplicates = find_duplicates(storage, record)
        if origin is not None and verdict.samples:
            _draw_again(storage, record, origin, samples, verdict)
    return verdict


def find_duplicates(storage: Storage, record: JobRecord) -> list[list[int]]:
    """Return the indices of samples with equal pixels, grouped; in flat memory.

    The hashes are looked through in several passes, each over a part of their range.
    """
    passes = -(-record.samples // _HASHES_AT_ONCE)
    groups: list[list[int]] = []
    for turn in range(passes):
        heads, indices = [], []
        for made in made_shards(storage, record):
            head = np.array([int(text[:16], 16) for text in made.sample_sha256], np.uint64)
            chosen = head % np.uint64(passes) == turn
            heads.append(head[chosen])
            indices.append(np.array(made.indices, np.int64)[chosen])
        groups += _groups(np.concatenate(heads), np.concatenate(indices))
    return sorted(groups)


def _groups(heads: Any, indices: Any) -> list[list[int]]:
    """Return the ``indices`` whose ``heads`` (64 bits of SHA-256) are equal, where several are."""
    order = np.lexsort((indices, heads))
    heads, indices = heads[order], indices[order]
    cuts = np.flatnonzero(np.diff(heads)) + 1
    return [part.tolist() for part in np.split(indices, cuts) if len(part) > 1]


def _verify_shards(
    out: str, record: JobRecord, numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, list[str]]]:
    check = partial(verify_shard, out, record)
    if workers == 1 or len(numbers) < 2 * workers:
        yield from map(check, numbers)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for start in range(0, len(numbers), 16 * workers):  # few results wait at a time
            yield from pool.map(check, numbers[start : start + 16 * workers])


def verify_shard(out: str, record: JobRecord, number: int) -> tuple[int, list[str]]:
    """Return the number of samples in a shard, and what is wrong with it."""
    storage = storage_from_url(out)
    try:
        made = read_shard_record(storage, record, number)
        data = storage.read(made.file)
    except LatentryError as error:
        return 0, [str(error)]
    name = f"{storage.url}/{made.file}"
    found = hashlib.sha256(data).hexdigest()
    if found != made.sha256:
        return 0, [f"{name} was changed: its SHA-256 is {found}, its record says {made.sha256}"]
    try:
        samples = list(read_shard(data, record.job.output, record.spec.image))
    except Exception as error:  # tarfile, pyarrow and Pillow share no base of theirs
        return 0, [f"{name} cannot be read: {type(error).__name__}: {error}"]
    return len(samples), [f"{name}: {text}" for text in _sample_problems(record, made, samples)]


def _sample_problems(
    record: JobRecord, made: ShardRecord, samples: Sequence[Sample]
) -> Iterator[str]:
    plan = record.plan.shard(made.shard)
    if made.file != record.shard_file(made.shard) or len(samples) != len(made.seeds):
        yield f"holds {len(samples)} samples, its record says {len(made.seeds)} in {made.file}"
        return
    if len(samples) + sum(made.missing.values()) != len(plan):
        yield f"holds {len(samples)} samples; the plan says {len(plan)}"
    allowed = {*plan.seeds.tolist(), *plan.reserve}
    recorded = zip(made.indices, made.seeds, made.sample_sha256, strict=True)
    for sample, (index, seed, sha256) in zip(samples, recorded, strict=True):
        if (sample.index, sample.seed, sample.sha256) != (index, seed, sha256):
            yield f"sample {index} is not what its record says"
        elif seed not in allowed:
            yield f"sample {index} has seed {seed}, which is not the shard's"
        elif plan.labels is not None:
            label = plan.labels[index - plan.first_index]
            if sample.controls.get("class_label") != label:
                yield f"sample {index} is not of class {label}"


def _verify_whole(storage: Storage, record: JobRecord, sizes: dict[str, int]) -> Iterator[str]:
    """Yield what is missing, what does not belong there, and an index that does not fit."""
    numbers = range(record.shards)
    expected = {JOB_FILE, INDEX_FILE, CONTACT_SHEET_FILE}
    expected |= {record.shard_file(n) for n in numbers} | {record.record_file(n) for n in numbers}
    for name in sorted(set(sizes) - expected):
        yield f"{storage.url}/{name} does not belong to the job"
    missing = [n for n in numbers if record.record_file(n) not in sizes]
    if missing:
        yield f"{len(missing)} of {record.shards} shards are missing, the first is {missing[0]}"
        return
    made = list(made_shards(storage, record)) if INDEX_FILE not in sizes else []
    if INDEX_FILE not in sizes:
        lost = record.samples - sum(len(shard.seeds) for shard in made)
        yield f"{storage.url} has no {INDEX_FILE}" + (f"; {lost} samples are missing" * (lost > 0))
        return
    if storage.read(INDEX_FILE) != index_bytes(record, made_shards(storage, record)):
        yield f"{storage.url}/{INDEX_FILE} does not fit the shards' records"
    if record.job.output.image_format == "none":
        return
    if CONTACT_SHEET_FILE not in sizes:
        yield f"{storage.url}/{CONTACT_SHEET_FILE} is missing"
    elif storage.read(CONTACT_SHEET_FILE) != contact_sheet(storage, record):
        yield f"{storage.url}/{CONTACT_SHEET_FILE} does not show the samples"


def _draw_again(
    storage: Storage, record: JobRecord, origin: Origin, count: int, verdict: Verdict
) -> None:
    """Draw ``count`` samples again, chosen at random, and compare their pixels."""
    chosen = sorted(random.SystemRandom().sample(range(record.samples), min(count, record.samples)))
    different = 0
    with origin.open_client(record.job.model, record.model_digest) as client:
        info = client.info(record.job.model)
        if info.model_digest != record.model_digest:
            raise JobError(
                f"{info.name} has the model digest {info.model_digest} here; the job's samples "
                f"were drawn by {record.model_digest}"
            )
        for number, indices in itertools.groupby(chosen, key=record.plan.shard_of):
            made = read_shard_record(storage, record, number)
            recorded = dict(
                zip(made.indices, zip(made.seeds, made.sample_sha256, strict=True), strict=True)
            )
            there = [index for index in indices if index in recorded]
            images = _drawn(record, client, number, there, [recorded[index][0] for index in there])
            for index, image in zip(there, images, strict=True):
                seed, sha256 = recorded[index]
                if pixel_sha256(image) == sha256:
                    verdict.drawn_again += 1
                elif made.engine_class != info.engine_class:
                    different += 1
                else:
                    verdict.problems.append(
                        f"sample {index} (seed {seed}) comes out different when it is drawn again"
                    )
    if different:
        verdict.notes.append(
            f"{different} samples differ when drawn by {info.engine_class}, another engine class "
            "than the job's; between classes single pixels may differ by one level"
        )


def _drawn(
    record: JobRecord, client: Client, number: int, indices: list[int], seeds: list[int]
) -> Sequence[Uint8]:
    """Draw samples of shard ``number`` as it was made."""
    if not indices:
        return []
    plan = record.plan.shard(number)
    labels = None
    if plan.labels is not None:
        labels = plan.labels[[index - plan.first_index for index in indices]]
    controls = record.job.controls_of(record.spec, np.array(seeds, np.int64), labels)
    result = client.generate(
        record.job.model,
        seeds=seeds,
        class_label=controls.get("class_label"),
        truncation_psi=controls.get("truncation_psi"),
    )
    return list(result.images)
