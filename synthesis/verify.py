"""Verify a job's output: every hash, every sample's place, and some samples drawn again."""

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.clients.client import Client
from latentry.contract.errors import JobError, listed
from latentry.contract.images import Uint8, decode_image, png_from_uint8
from latentry.synthesis.crews.processes import start_worker
from latentry.synthesis.duplicates import find_duplicates
from latentry.synthesis.job import InputRows
from latentry.synthesis.plan import ShardPlan
from latentry.synthesis.records import (
    CONTACT_SHEET_FILE,
    INDEX_FILE,
    JOB_FILE,
    JobRecord,
    ShardRecord,
    most_index_bytes,
    most_record_bytes,
    read_index,
    read_job,
    read_shard_record,
)
from latentry.synthesis.run import (
    contact_sheet,
    index_bytes,
    most_sheet_bytes,
    moved_sample,
    read_sheet,
    samples_of_shard,
)
from latentry.synthesis.shard_making import Origin, Progress, samples_together
from latentry.synthesis.sinks.facts import Facts, number_from_scalar
from latentry.synthesis.sinks.output_data import sample_sha256
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sources.listing import PictureFolder, shown_path
from latentry.synthesis.sources.pictures import (
    Folders,
    PictureRows,
    groups_of_one_size,
    largest_bytes,
    stacked,
)
from latentry.synthesis.storage.protocol import MOST_BYTES, Storage
from latentry.synthesis.storage.urls import storage_from_url

_SHOWN = 20
_PLANNED_AT_ONCE = 256  # samples, whose vectors may be large


@dataclass
class JobVerdict:
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
        if self.problems:
            faults = listed((f"fault: {problem}" for problem in self.problems), "\n", most=_SHOWN)
            yield from faults.split("\n")
        for group in self.duplicates[:_SHOWN]:
            yield f"the same image: samples {listed(group, most=_SHOWN)}"
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
    folders: Mapping[str, PictureFolder] | None = None,
    workers: int = 1,
    progress: Progress = lambda _: None,
) -> JobVerdict:
    """Verify the output of a job.

    Args:
        out: A folder, or a URL that fsspec knows.
        origin: Where samples are drawn again; None for no such check.
        samples: How many are drawn again, chosen at random.
        folders: The folders of pictures that the job was made of, by the names of their inputs.
        workers: Processes that read and hash.
        progress: Told of every sample that was read.

    Raises:
        JobError: There is no job in ``out``, ``origin`` offers another model, or the folders are
            not given.
        BadRequest: A folder cannot be listed.
    """
    storage = storage_from_url(out)
    record = read_job(storage)
    if origin is not None and set(record.folders) != set(folders or ()):
        raise JobError(
            f"{out} was made of folders of {listed(record.folders) or 'nothing'}, of which samples "
            "are drawn again; give its job's file with --job, or --samples 0"
        )
    as_made = {
        name: folder.model_copy(update={"resize": record.job.folders[name].resize})
        for name, folder in (folders or {} if origin is not None else {}).items()
    }
    listed_now = Folders(record.spec, as_made)
    sizes = storage.sizes()
    index = read_index(storage, record) if INDEX_FILE in sizes else {}
    # By another job than the index's nothing can be judged.
    verdict = JobVerdict(problems=list(_misfits(storage, index, {JOB_FILE: MOST_BYTES})))
    if verdict.problems:
        return verdict
    numbers = [n for n in range(record.shards) if record.record_file(n) in sizes]
    for count, problems in _verify_shards(out, record, numbers, workers):
        verdict.shards += 1
        verdict.samples += count
        verdict.problems += problems
        progress(count)
    others = {record.record_file(n): most_record_bytes(record, n) for n in numbers}
    if CONTACT_SHEET_FILE in sizes:
        others[CONTACT_SHEET_FILE] = most_sheet_bytes(record)
    verdict.problems += _misfits(storage, index, others)
    verdict.problems += _verify_names(storage, record, sizes, verdict.samples)
    if not verdict.problems:
        verdict.problems += _verify_whole(storage, record)
    if not verdict.problems:
        verdict.duplicates = find_duplicates(storage, record)
        if origin is not None and verdict.samples:
            verdict.problems += _moved(storage, record, listed_now)
            _draw_again(storage, record, origin, samples, verdict, listed_now)
    return verdict


def _verify_shards(
    out: str, record: JobRecord, numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, list[str]]]:
    check = partial(verify_shard, out, record)
    if workers == 1 or len(numbers) < 2 * workers:
        yield from map(check, numbers)
        return
    crew = [
        start_worker(_verify_some, out, record, numbers[place::workers]) for place in range(workers)
    ]
    try:
        for turn in range(len(numbers)):
            result = crew[turn % workers][1].recv()
            if isinstance(result, BaseException):
                raise result
            yield result
    except (EOFError, ConnectionError) as error:
        raise JobError(
            "a process that verified was killed; when memory is short, use fewer --workers"
        ) from error
    finally:
        for process, connection in crew:
            process.kill()
            process.join()
            connection.close()


def _verify_some(
    connection: "Connection[Any, Any]", out: str, record: JobRecord, numbers: Sequence[int]
) -> None:
    """Run in a worker: tell of each shard; a full pipe keeps it from going far ahead."""
    for number in numbers:
        connection.send(verify_shard(out, record, number))


def verify_shard(out: str, record: JobRecord, number: int) -> tuple[int, list[str]]:
    """Return the number of samples in a shard, and what is wrong with it."""
    storage = storage_from_url(out)
    name = f"{storage.url}/{record.shard_file(number)}"
    try:
        made = read_shard_record(storage, record, number)
        size, _ = storage.told(made.file)
        if size != made.size:
            return 0, [f"{name} was changed: it has {size:,} bytes, its record says {made.size:,}"]
        found = storage.sha256(made.file, most=made.size)
        if found != made.sha256:
            return 0, [f"{name} was changed: its SHA-256 is {found}, its record says {made.sha256}"]
        samples = samples_of_shard(storage, record, made)
        problems = list(_sample_problems(record, made, samples))
    except JobError as error:
        return 0, [str(error)]
    return len(made.seeds), [f"{name}: {text}" for text in problems]


def _sample_problems(
    record: JobRecord, made: ShardRecord, samples: Iterable[Sample]
) -> Iterator[str]:
    plan, texts = record.plan.shard(made.shard), [*Facts(record.spec).texts]
    recorded = zip(made.indices, made.seeds, made.sample_sha256, strict=True)
    before = ""
    for place, (sample, (index, seed, sha256)) in enumerate(zip(samples, recorded, strict=True)):
        if not place % _PLANNED_AT_ONCE:
            inputs = _planned_inputs(record, plan, made, slice(place, place + _PLANNED_AT_ONCE))
        if (sample.index, sample.seed, sample.sha256) != (index, seed, sha256):
            yield f"sample {index} is not what its record says"
        for name, values in inputs.items():
            found, planned = sample.inputs.get(name), values[place % _PLANNED_AT_ONCE]
            if not _is_as_planned(found, planned):
                yield f"sample {index} has {name} {_difference(found, planned)}"
        yield from _path_problems(sample, texts, before)
        before = str(sample.inputs.get(texts[0], "")) if texts else ""


def _is_as_planned(found: Any, planned: Any) -> bool:
    if isinstance(planned, np.ndarray):
        return np.array_equal(np.asarray(found), planned)
    return found in (number_from_scalar(planned), planned)


def _difference(found: Any, planned: Any) -> str:
    """Return what is found and what should be; of vectors the first numbers that differ."""
    if not isinstance(planned, np.ndarray):
        return f"{found}, not {number_from_scalar(planned)}"
    if not isinstance(found, np.ndarray):
        return f"{found}, not {len(planned)} numbers"
    place = int(np.flatnonzero(found != planned)[0])
    return f"whose number {place} is {found[place]}, not {planned[place]}"


def _path_problems(sample: Sample, texts: Sequence[str], before: str) -> Iterator[str]:
    """Yield why a sample does not say what pictures it was made of, or not in their order.

    Args:
        sample: The sample.
        texts: What it has to say: of each input the path, then the hash.
        before: The first path of the sample before it.
    """
    said = [str(sample.inputs.get(name, "")) for name in texts]
    if not all(said):
        yield f"sample {sample.index} does not say which file it was made of"
    elif not all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in said[1::2]):
        yield f"sample {sample.index} has a hash of its file that is none"
    elif said and not before < said[0]:
        yield (
            f"sample {sample.index} was made of {shown_path(said[0])}, which does not come "
            f"after {shown_path(before)}"
        )


def _moved(storage: Storage, record: JobRecord, folders: Folders) -> Iterator[str]:
    """Yield which folders hold other files than those that the job was made of."""
    found = {name: now for name, now in folders.records.items() if now != record.folders[name]}
    for name, now in found.items():
        yield (
            f"the folder of {name} holds {now.files:,} files, when the job was made "
            f"{record.folders[name].files:,}; their list has the SHA-256 {now.sha256}, then it had "
            f"{record.folders[name].sha256}"
        )
    if found and (moved := moved_sample(storage, record, folders)):
        yield moved


def _planned_inputs(
    record: JobRecord, plan: ShardPlan, made: ShardRecord, part: slice
) -> InputRows:
    """Return every number, class and vector of a part of a shard's samples, as the job has them."""
    places = np.array(made.indices[part], np.int64) - plan.first_index
    labels = None if plan.labels is None else plan.labels[places]
    return record.job.inputs_of(record.spec, np.array(made.seeds[part], np.int64), labels)


def _misfits(storage: Storage, index: dict[str, str], files: Mapping[str, int]) -> Iterator[str]:
    """Yield which of the files, given with their largest sizes, are not those of the index."""
    for name in sorted(index.keys() & files):
        try:
            found = storage.sha256(name, most=files[name])
        except JobError as error:
            yield str(error)
            continue
        if found != index[name]:
            yield (
                f"{storage.url}/{name} was changed, or {INDEX_FILE} was: its SHA-256 is {found}, "
                f"{INDEX_FILE} says {index[name]}"
            )


def _verify_names(
    storage: Storage, record: JobRecord, sizes: dict[str, int], there: int
) -> Iterator[str]:
    """Yield what is missing beside the samples that are ``there``, and what does not belong."""
    numbers = range(record.shards)
    expected = {JOB_FILE, INDEX_FILE, CONTACT_SHEET_FILE}
    expected |= {record.shard_file(n) for n in numbers} | {record.record_file(n) for n in numbers}
    for name in sorted(set(sizes) - expected):
        yield f"{storage.url}/{name} does not belong to the job"
    missing = [n for n in numbers if record.record_file(n) not in sizes]
    if missing:
        first = record.record_file(missing[0])
        yield f"{len(missing)} of {record.shards} shards are missing, the first is {first}"
    lost = record.samples - there
    if INDEX_FILE not in sizes:
        yield f"{storage.url} has no {INDEX_FILE}" + (f"; {lost} samples are missing" * (lost > 0))
    elif lost > 0:
        yield f"{lost} samples are missing, and {storage.url} has an {INDEX_FILE}"
    elif record.job.output.has_sheet(record.spec) and CONTACT_SHEET_FILE not in sizes:
        yield f"{storage.url}/{CONTACT_SHEET_FILE} is missing"


def _verify_whole(storage: Storage, record: JobRecord) -> Iterator[str]:
    """Yield which of the files that follow from sound shards do not."""
    found = storage.sha256(INDEX_FILE, most=most_index_bytes(record))
    wanted = hashlib.sha256(index_bytes(storage, record)).hexdigest()
    if found != wanted:
        yield (
            f"{storage.url}/{INDEX_FILE} was changed: its SHA-256 is {found}, the shards make it "
            f"{wanted}"
        )
    if record.job.output.has_sheet(record.spec) and not _shows(
        read_sheet(storage, record), contact_sheet(storage, record)
    ):
        yield f"{storage.url}/{CONTACT_SHEET_FILE} does not show the samples"


def _shows(file: bytes, sheet: Uint8) -> bool:
    """Whether a file holds these pixels; the zlib of who wrote it may be another."""
    try:
        height, width, channels = sheet.shape
        return np.array_equal(decode_image(file, channels, (height, width)), sheet)
    except Exception:  # whatever Pillow says of what is no such picture
        return file == png_from_uint8(sheet)  # of one that is too large for Pillow, too


def _draw_again(
    storage: Storage,
    record: JobRecord,
    origin: Origin,
    count: int,
    verdict: JobVerdict,
    folders: Folders,
) -> None:
    """Draw ``count`` samples again, chosen at random, and compare them."""
    chosen = sorted(random.SystemRandom().sample(range(record.samples), min(count, record.samples)))
    outputs = record.job.output.of_sample(record.spec)
    different = 0
    with origin.open_client(record.job.model, record.model_digest, record.build_digest) as client:
        info = client.info(record.job.model)
        record.check_source(info)
        for number, indices in itertools.groupby(chosen, key=record.plan.shard_of):
            made = read_shard_record(storage, record, number)
            recorded = dict(
                zip(made.indices, zip(made.seeds, made.sample_sha256, strict=True), strict=True)
            )
            there = [index for index in indices if index in recorded]
            pictures, faults = _pictures(storage, record, made, there, folders)
            verdict.problems += faults
            if record.folders:
                there = sorted(pictures)
            stored = (
                _stored(storage, record, made, there)
                if made.engine_class != info.engine_class
                else {}
            )
            seeds = [recorded[index][0] for index in there]
            drawn = _drawn(record, client, number, there, seeds, list(pictures.values()))
            for index, rows in zip(there, drawn, strict=True):
                seed, sha256 = recorded[index]
                if sample_sha256(outputs, rows) == sha256:
                    verdict.drawn_again += 1
                elif index in stored and _are_near(record, rows, stored[index]):
                    different += 1
                else:
                    verdict.problems.append(
                        f"sample {index} (seed {seed}) comes out different when it is drawn again"
                    )
    if different:
        verdict.notes.append(
            f"{different} samples, drawn by {info.engine_class}, another engine class than the "
            "job's, differ by what rounding makes, as they may"
        )


def _pictures(
    storage: Storage, record: JobRecord, made: ShardRecord, indices: list[int], folders: Folders
) -> tuple[dict[int, PictureRows], list[str]]:
    """Return by index what samples of a shard are made of, and which pictures were changed."""
    pictures: dict[int, PictureRows] = {}
    faults = []
    for sample in samples_of_shard(storage, record, made) if record.folders and indices else ():
        if sample.index in indices:
            rows, fault = folders.read_again(sample.inputs)
            if fault:
                faults.append(f"sample {sample.index} is not drawn again: {fault}")
            else:
                pictures[sample.index] = rows
    return pictures, faults


def _stored(
    storage: Storage, record: JobRecord, made: ShardRecord, indices: list[int]
) -> dict[int, list[NDArray[Any]]]:
    """Return the outputs of these samples as the shard's file holds them, where it holds all."""
    outputs = record.job.output.of_sample(record.spec)
    if not all(output.is_written for output in outputs):
        return {}
    samples = samples_of_shard(storage, record, made)
    return {
        sample.index: [output.row(sample.data[output.name]) for output in outputs]
        for sample in samples
        if sample.index in indices
    }


def _are_near(
    record: JobRecord, found: Sequence[NDArray[Any]], stored: Sequence[NDArray[Any]]
) -> bool:
    """Whether the outputs of a sample are as near as those of two engine classes must be."""
    outputs = record.job.output.of_sample(record.spec)
    return all(
        row.shape == other.shape and output.item.is_same_but_for_rounding(row, other)
        for output, row, other in zip(outputs, found, stored, strict=True)
    )


def _drawn(
    record: JobRecord,
    client: Client,
    number: int,
    indices: list[int],
    seeds: list[int],
    pictures: Sequence[PictureRows],
) -> list[tuple[NDArray[Any], ...]]:
    """Draw samples of shard ``number`` as it was made; return the outputs of each."""
    plan = record.plan.shard(number)
    labels = None
    if plan.labels is not None:
        labels = plan.labels[[index - plan.first_index for index in indices]]
    inputs = record.job.inputs_of(record.spec, np.array(seeds, np.int64), labels)
    outputs = record.job.output.of_sample(record.spec)
    drawn: dict[int, tuple[NDArray[Any], ...]] = {}
    groups = groups_of_one_size(pictures) if record.folders else [[*range(len(indices))]]
    together = samples_together(record.spec, largest_bytes(record.spec, record.folders))
    parts = [
        group[start : start + together]
        for group in groups
        for start in range(0, len(group), together)
    ]
    for part in parts:
        rows: InputRows = {name: values[part] for name, values in inputs.items()}
        rows |= stacked([pictures[place] for place in part]) if record.folders else {}
        result = client.generate(
            record.job.model,
            seeds=np.array(seeds)[part] if record.spec.takes_seed else None,
            **rows,
        )
        found = zip(*(result[output.item.name] for output in outputs), strict=True)
        drawn |= zip(part, found, strict=True)
    return [drawn[place] for place in range(len(indices))]
