"""Synthesis jobs: exactly the samples that were asked for, the same bytes whatever died on the way.

``job.json`` is written first and holds everything on which a byte depends; then each shard, its
record after it; ``index.json`` last, when the job is whole. A shard counts as made when its record
is there; a later run checks it before it believes so. docs/synthesis.md describes the folder.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from latentry.contract.errors import JobError, listed
from latentry.contract.images import Uint8, grid_from_images, png_from_uint8, resized
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import FREE
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo
from latentry.synthesis.crews.crew import Crew, make_here
from latentry.synthesis.filters.filters import file_hashes
from latentry.synthesis.filters.network import NetworkOptions, load_network, network_versions
from latentry.synthesis.job import Job
from latentry.synthesis.plan import plan_from_job
from latentry.synthesis.records import (
    CONTACT_SHEET_FILE,
    INDEX_FILE,
    JOB_FILE,
    JobRecord,
    ShardRecord,
    Totals,
    job_bytes,
    made_shards,
    read_index,
    read_job,
    read_record_bytes,
    read_shard_record,
)
from latentry.synthesis.shard_making import Origin, Progress, Work, judges
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import encoder_versions, read_shard
from latentry.synthesis.sources.pictures import Folders, decoder_versions, first_moved
from latentry.synthesis.storage.protocol import Storage
from latentry.synthesis.storage.urls import storage_from_url

_SHEET_SHARDS, _SHEET_SAMPLES = 8, 8
_SHEET_SIDE = 256  # of pictures of many sizes
_MOST_LOOKED_AT = 20_000


def record_from_job(job: Job, info: ModelInfo) -> JobRecord:
    """Return the record of ``job`` as drawn by the model ``info``.

    Raises:
        BadRequest: The job asks what the model does not take, or does not fit in the seeds.
        JobError: The job pins another model digest or build.
        NotFound: A file of a filter is missing.
    """
    if job.model_digest not in (None, info.model_digest):
        raise JobError(
            f"the job asks for {job.model} with the model digest {job.model_digest}; here it is "
            f"{info.model_digest}"
        )
    if job.build not in (None, info.build):
        raise JobError(
            f"the job asks for the build {job.build} of {job.model}; here it is run by "
            f"{info.build}: `latentry serve --build {job.model}={job.build}`"
        )
    job.check(info.spec)
    folders = Folders(info.spec, job.folders)
    if job.folders:
        job = job.with_files(info.spec, folders.count)
    plan = plan_from_job(job, info.spec)
    for options in job.filters:
        options.load()  # so that one which cannot be used is found before anything is written
    if job.output.features:
        load_network(job.output.features)
    return JobRecord(
        # Which digest and build are meant stands beside it, whether or not the job named them.
        job=job.model_copy(update={"model_digest": None, "build": None}),
        model_digest=info.model_digest,
        build=info.build,
        build_digest=info.build_digest,
        engine_class=job.engine_class or info.engine_class,
        spec=info.spec,
        # A job that takes any engine gives up equal bytes, and need not ask for equal encoders.
        encoders={} if job.engine_class else _versions(job, info.spec),
        files=file_hashes(judges(job)),
        folders=folders.records,
        samples=plan.samples,
        shards=plan.shards,
    )


def _versions(job: Job, spec: GeneratorSpec) -> dict[str, str]:
    """Return the versions of everything but the generator's engine on which a byte depends."""
    versions = encoder_versions(job.output, spec)
    if job.folders:
        versions |= decoder_versions()
    networks = any(isinstance(options, NetworkOptions) for options in judges(job))
    return {**versions, **network_versions()} if networks else versions


def open_record(job: Job, origin: Origin, begun: JobRecord | None = None) -> JobRecord:
    """Return the record of ``job`` for the model that ``origin`` offers; errors as above.

    A repository may have newer versions of the model by now, or another default build; a job of
    which something was ``begun`` goes on with its own.

    Raises:
        JobError: What was begun was drawn by another model or build than is served.
    """
    digest, build = job.model_digest, job.build
    if begun and digest in (None, begun.model_digest):
        digest, build = begun.model_digest, begun.build_digest
    with origin.open_client(job.model, digest, build) as client:
        info = client.info(job.model)
    if begun and job.model == begun.job.model:
        begun.check_source(info)
    return record_from_job(job, info)


def begun_record(storage: Storage) -> JobRecord | None:
    """Return the record of the job in ``storage`` of which something was made; None for none."""
    sizes = storage.sizes()
    return read_job(storage) if JOB_FILE in sizes and set(sizes) != {JOB_FILE} else None


def begin(storage: Storage, record: JobRecord) -> None:
    """Write ``job.json``, or check that the folder is of this very job.

    Raises:
        JobError: It was started differently, the differences are named; or it holds other files.
    """
    sizes = storage.sizes()
    if JOB_FILE not in sizes:
        if sizes:
            raise JobError(
                f"{storage.url} holds {len(sizes)} files ({', '.join(sorted(sizes)[:3])}, ...) and "
                f"no {JOB_FILE}; give an empty or new folder with --out"
            )
        storage.write(JOB_FILE, job_bytes(record))
        return
    started = read_job(storage)
    before = json.loads(job_bytes(started))
    found = list(_differences(before, json.loads(job_bytes(record))))
    if found and set(sizes) == {JOB_FILE}:
        storage.write(JOB_FILE, job_bytes(record))  # nothing was made by the other one
    elif found:
        if started.folders != record.folders and started.folders.keys() == record.folders.keys():
            folders = Folders(record.spec, record.job.folders)
            found += filter(None, [moved_sample(storage, started, folders)])
        engines = any(text.startswith(("engine_class", "encoders")) for text in found)
        advice = ' (engine_class = "any" in the job allows other engines from the start)' * engines
        raise JobError(
            f"{storage.url} was started differently: {listed(found, '; ')}. Go on as it was "
            f"started, or give another --out{advice}"
        )


def moved_sample(storage: Storage, record: JobRecord, folders: Folders) -> str:
    """Return the first sample that is there and has another file by now; empty for none."""
    samples = (
        (sample.index, sample.inputs)
        for made in made_shards(storage, record)
        for sample in samples_of_shard(storage, record, made)
    )
    try:
        return first_moved(folders, itertools.islice(samples, _MOST_LOOKED_AT))
    except JobError:  # a damaged shard says nothing
        return ""


def finish(storage: Storage, record: JobRecord, settled: Mapping[int, bytes]) -> Totals:
    """Count what is there; where the job is whole, write the contact sheet and the index.

    Args:
        storage: Where the job is.
        record: The job.
        settled: SHA-256 of the record of each shard that this run has made or found sound, by
            number; no other is put into an index.

    Raises:
        JobError: A shard of the contact sheet is damaged.
    """
    totals, sound = Totals(), 0
    for made in made_shards(storage, record):
        totals.add(made)
        sound += settled.get(made.shard) == hashlib.sha256(made.as_bytes()).digest()
    if totals.samples == record.samples and sound == record.shards:
        if record.job.output.has_sheet(record.spec):
            sheet = png_from_uint8(contact_sheet(storage, record))
            storage.write(CONTACT_SHEET_FILE, sheet)
        storage.write(INDEX_FILE, index_bytes(storage, record))
    return totals


def index_bytes(storage: Storage, record: JobRecord) -> bytes:
    """Return ``index.json`` of a whole job: the counts, and every file with its hashes."""
    totals, shards = Totals(), []
    for shard in made_shards(storage, record):
        totals.add(shard)
        shards.append(
            {
                "file": shard.file,
                "samples": len(shard.seeds),
                "bytes": shard.size,
                "sha256": shard.sha256,
                "record": record.record_file(shard.shard),
                "record_sha256": hashlib.sha256(shard.as_bytes()).hexdigest(),
            }
        )
    index = {
        "model": record.job.model,
        "model_digest": record.model_digest,
        "build": record.build,
        "build_digest": record.build_digest,
        "job_sha256": hashlib.sha256(storage.read(JOB_FILE)).hexdigest(),
        **totals.as_json(),
        "files": shards,
    }
    if record.job.output.has_sheet(record.spec):
        sheet = read_sheet(storage, record)
        index["contact_sheet_sha256"] = hashlib.sha256(sheet).hexdigest()
    return json.dumps(index, indent=1).encode() + b"\n"


def contact_sheet(storage: Storage, record: JobRecord) -> Uint8:
    """Return a picture of a few samples of a few shards, evenly spread over the job."""
    numbers = np.unique(np.linspace(0, record.shards - 1, _SHEET_SHARDS).astype(int))
    per_shard = _SHEET_SHARDS * _SHEET_SAMPLES // len(numbers)
    picture = record.job.output.of_sample(record.spec)[0]
    images: list[Uint8] = []
    for turn, number in enumerate(numbers.tolist()):
        samples = samples_of_shard(storage, record, read_shard_record(storage, record, number))
        # Each row begins where the one above ended, so that it goes through the classes.
        first = turn * per_shard % max(1, record.plan.size(number) - per_shard)
        for sample in itertools.islice(samples, first, first + per_shard):
            images.append(picture.row(sample.data[picture.name]))
    return grid_from_images(_of_one_size(images) if FREE in picture.shape else images)


def _of_one_size(images: Sequence[Uint8]) -> list[Uint8]:
    """Return pictures that are scaled down where they are large, with black around the others."""
    small = [_scaled_down(image) for image in images]
    height, width, _ = np.max([image.shape for image in small], axis=0)
    return [
        np.pad(image, ((0, height - len(image)), (0, width - len(image[0])), (0, 0)))
        for image in small
    ]


def _scaled_down(image: Uint8) -> Uint8:
    height, width, _ = image.shape
    scale = max(height, width) / _SHEET_SIDE
    if scale <= 1:
        return image
    return resized(image, max(1, round(height / scale)), max(1, round(width / scale)))


def read_sheet(storage: Storage, record: JobRecord) -> bytes:
    """Return the contact sheet's file."""
    return storage.read(CONTACT_SHEET_FILE, most=most_sheet_bytes(record))


def most_sheet_bytes(record: JobRecord) -> int:
    """Return the largest size that the contact sheet may have."""
    return 2**20 + 2 * _SHEET_SHARDS * _SHEET_SAMPLES * record.spec.image.row_bytes(Format.RAW)


def samples_of_shard(storage: Storage, record: JobRecord, made: ShardRecord) -> Iterator[Sample]:
    """Yield the samples of a shard's file; raises JobError where it is damaged."""
    try:
        with storage.open(made.file, size=made.size) as file:
            yield from read_shard(file, record.job.output, record.spec, len(made.seeds))
    except JobError:
        raise
    except Exception as error:  # zipfile, pyarrow and Pillow share no base of theirs
        raise JobError(
            f"{storage.url}/{made.file} cannot be read ({type(error).__name__}: {error}); run the "
            "job again, and it is made again"
        ) from error


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield what differs between two JSON values, for people."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    elif before != now:
        yield f"{where} was {_short(before)}, here it is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def drop_changed(storage: Storage, record: JobRecord, shards: int) -> dict[int, str]:
    """Remove those of the first ``shards`` records that are not the index's, if the job was whole.

    Those shards are made again, for to go on with a record that was changed since would make it
    official. The index goes, too, where it is damaged itself. Returns what was wrong, by number.
    """
    sizes = storage.sizes()
    if INDEX_FILE not in sizes:
        return {}
    index = read_index(storage, record)
    if index.get(JOB_FILE) != hashlib.sha256(storage.read(JOB_FILE)).hexdigest():
        storage.remove(INDEX_FILE)
        return {}
    faults = {}
    for number in range(shards):
        name = record.record_file(number)
        if name not in sizes:
            continue
        try:
            found = hashlib.sha256(read_record_bytes(storage, record, number)).hexdigest()
        except JobError as error:
            found = str(error)
        if found != index.get(name):
            faults[number] = f"{storage.url}/{name} was changed since the job was whole"
            storage.remove(name)
    return faults


def find_shards(
    storage: Storage, record: JobRecord, limit: int | None
) -> tuple[list[int], list[int]]:
    """Return the numbers of the shards that are missing, and of those that are there by name.

    Args:
        storage: Where the job is.
        record: The job.
        limit: Only the shards that hold the first so many samples; None for all.
    """
    sizes = storage.sizes()
    missing: list[int] = []
    there: list[int] = []
    for number in range(shards_within(record, limit)):
        names = {record.record_file(number), record.shard_file(number)}
        (there if names <= sizes.keys() else missing).append(number)
    return missing, there


def shards_within(record: JobRecord, limit: int | None) -> int:
    """Return how many shards hold the first ``limit`` samples; all of them for None."""
    return record.shards if limit is None else record.plan.shards_of_first(limit)


def run_job(
    job: Job,
    origin: Origin,
    out: str,
    *,
    crew: Crew = make_here,
    limit: int | None = None,
    take_over: bool = False,
    on_start: Callable[[JobRecord, int, int], None] = lambda *_: None,
    on_fault: Callable[[str, int], None] = lambda *_: None,
    progress: Progress = lambda _: None,
) -> Totals:
    """Make what is missing of a job in ``out``, or is not sound; return what is there then.

    Args:
        job: What to make.
        origin: Where samples are drawn.
        out: A folder, or a URL that fsspec knows.
        crew: Who makes the shards.
        limit: Only the shards that hold the first so many samples.
        take_over: Whether to go on although another machine's process holds the lock.
        on_start: Told the job's record, the samples to make now, and the shards that are there.
        on_fault: Told of a shard that was made again: what was wrong with it, and its samples.
        progress: Told of every sample.

    Raises:
        BadRequest: The job asks for what there is not.
        JobError: The folder is in use, or of another job.
        OutOfSpace: The disk is full; what is made stays, and the same call goes on.
        LatentryError: The source failed.
    """
    storage = storage_from_url(out)
    record = open_record(job, origin, begun_record(storage))
    with storage.locked(take_over=take_over):
        begin(storage, record)
        faults = drop_changed(storage, record, shards_within(record, limit))
        missing, there = find_shards(storage, record, limit)
        on_start(record, sum(record.plan.size(number) for number in missing), len(there))
        if missing:
            storage.remove(INDEX_FILE)  # of when the job was whole
        settled: dict[int, bytes] = {}
        for shard in crew(Work(record, origin, storage.url), _in_turn(missing, there), progress):
            number = shard.record.shard
            settled[number] = hashlib.sha256(shard.record.as_bytes()).digest()
            if fault := shard.fault or faults.get(number, ""):
                on_fault(fault, record.plan.size(number) * (number not in faults))
        return finish(storage, record, settled)


def _in_turn(missing: Iterable[int], there: Iterable[int]) -> Iterator[int]:
    """Yield both in turn, so that some workers read and hash while others draw."""
    for pair in itertools.zip_longest(missing, there):
        yield from (number for number in pair if number is not None)
