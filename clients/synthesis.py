"""Synthesis jobs: exactly the samples that were asked for, the same bytes whatever died on the way.

``job.json`` is written first and holds everything on which a byte depends; then each shard, its
record after it; ``index.json`` last, when the job is whole. A shard counts as made when its record
is there. docs/synthesis.md describes the folder.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentry.clients.client import Client
from latentry.clients.filters import (
    Batch,
    FilterOptions,
    NetworkOptions,
    file_hashes,
    load_network,
    network_versions,
)
from latentry.clients.jobs import Controls, Job, Plan, ShardPlan, plan_from_job, split
from latentry.clients.retry import Deadline, Retries, policy_from_retry_for_s
from latentry.clients.server_options import DEFAULT_SERVER, Server
from latentry.clients.shards import (
    SUFFIXES,
    Sample,
    data_from_image,
    encoder_versions,
    image_from_data,
    pixel_sha256,
    read_shard,
    shard_bytes,
    shard_stem,
)
from latentry.clients.storage import Storage, storage_from_url
from latentry.serving.errors import InvalidOutput, JobError, TimedOut
from latentry.serving.images import Uint8, grid_from_images, png_from_uint8
from latentry.serving.seeds import MAX_SEED
from latentry.serving.spec import GeneratorSpec, explain
from latentry.serving.transport import ModelInfo

JOB_FILE = "job.json"
INDEX_FILE = "index.json"
CONTACT_SHEET_FILE = "contact-sheet.png"
DEFAULT_RETRY_FOR_S = 300.0

# Samples that are asked for together: enough requests in flight to keep a server busy.
_DRAWN_TOGETHER, _BYTES_TOGETHER = 256, 64 * 2**20
_SHEET_SHARDS, _SHEET_SAMPLES = 8, 8
_MOST_REASONS = 100

Progress = Callable[[int], None]
"""Told how many more samples are accepted; a negative number when work was lost."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class JobRecord(_Strict):
    """``job.json``: the job, and everything else on which a byte of its shards depends."""

    format: Literal[1] = 1
    job: Job
    model_digest: str
    engine_class: str
    spec: GeneratorSpec
    encoders: dict[str, str]
    files: dict[str, str]
    samples: Annotated[int, Field(ge=1, le=MAX_SEED)]
    shards: Annotated[int, Field(ge=1)]

    @cached_property
    def plan(self) -> Plan:
        """Which samples each shard holds."""
        return plan_from_job(self.job, self.spec)

    def shard_file(self, number: int) -> str:
        """Return the name of a shard's file."""
        return shard_stem(number, self.shards) + SUFFIXES[self.job.output.format]

    def record_file(self, number: int) -> str:
        """Return the name of a shard's record."""
        return shard_stem(number, self.shards) + ".json"


class Rejection(_Strict):
    """A seed that was drawn and not taken, and why."""

    index: int
    seed: int
    reason: str


class ShardRecord(_Strict):
    """``shard-000012.json``: what a shard holds, and its hashes.

    Attributes:
        shard: Which one.
        file: Name of its file, with ``size`` in bytes and ``sha256``.
        engine_class: What drew it.
        indices: Place of each sample in the whole job.
        seeds: Of each sample.
        sample_sha256: SHA-256 of each sample's pixels.
        by_class: Number of samples of each class label; ``""`` where there are no classes.
        missing: Samples for which the reserve was used up, likewise.
        rejected: Seeds that were replaced.
    """

    shard: int
    file: str
    size: int
    sha256: str
    engine_class: str
    indices: tuple[int, ...]
    seeds: tuple[int, ...]
    sample_sha256: tuple[str, ...]
    by_class: dict[str, int]
    missing: dict[str, int]
    rejected: tuple[Rejection, ...]

    @model_validator(mode="after")
    def _lists_fit_together(self) -> Self:
        if not len(self.indices) == len(self.seeds) == len(self.sample_sha256):
            raise ValueError("indices, seeds and sample_sha256 differ in length")
        return self


@dataclass(frozen=True)
class Origin:
    """Where samples are drawn.

    Attributes:
        repository: The model repository, to draw without a server; None asks the server.
        server: The server.
        retry_for_s: Seconds to wait for a server that is busy or gone.
    """

    repository: Path | None = None
    server: Server = DEFAULT_SERVER
    retry_for_s: float = DEFAULT_RETRY_FOR_S

    def open_client(
        self, model: str, model_digest: str | None = None, *, patient: bool = False
    ) -> Client:
        """Return a client that draws with one thread here, or asks the server.

        A ``patient`` one waits for a server that is busy or gone.

        Raises:
            NotFound: The repository lacks the model, or the version with this digest.
            EntryError: The entry is damaged.
        """
        if self.repository is None:
            retry_for_s = self.retry_for_s if patient else None
            return self.server.open_client(timeout_s=None, retry_for_s=retry_for_s)
        from latentry.serving.local import LocalTransport

        transport = LocalTransport(self.repository, (model,), threads=1, model_digest=model_digest)
        return Client(transport=transport, timeout_s=None)


@dataclass(frozen=True)
class Work:
    """What a worker has to know to make any shard of a job."""

    record: JobRecord
    origin: Origin
    out: str


@dataclass
class Totals:
    """What a job has made so far.

    Attributes:
        shards: Shards that are made.
        samples: Samples in them.
        size: Their bytes.
        by_class: Samples by class label.
        missing: Samples for which the reserves were used up, by class label.
        rejected: Replaced seeds by reason.
    """

    shards: int = 0
    samples: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        self.by_class: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def add(self, record: ShardRecord) -> None:
        """Count a shard."""
        self.shards += 1
        self.samples += len(record.seeds)
        self.size += record.size
        self.by_class.update(record.by_class)
        self.missing.update(record.missing)
        for rejection in record.rejected:
            known = rejection.reason in self.rejected or len(self.rejected) < _MOST_REASONS
            self.rejected[rejection.reason if known else "other reasons"] += 1

    def as_json(self) -> dict[str, Any]:
        """Return the counts for files and scripts."""
        return {
            "shards": self.shards,
            "samples": self.samples,
            "bytes": self.size,
            "by_class": _by_label(self.by_class),
            "missing": _by_label(self.missing),
            "rejected": dict(sorted(self.rejected.items())),
        }


class ShardMaker:
    """Makes shards of one job, one after the other; each worker has one."""

    def __init__(self, work: Work) -> None:
        self._record = work.record
        self._job = work.record.job
        self._storage = storage_from_url(work.out)
        if file_hashes(_judges(self._job)) != work.record.files:
            raise JobError(
                "a file of the job's filters was changed while the job ran; put it back "
                f"({', '.join(work.record.files)}), or give another --out"
            )
        self._filters = [options.load() for options in self._job.filters]
        features = self._job.output.features
        self._features = load_network(features) if features else None
        self._client = work.origin.open_client(
            self._job.model, work.record.model_digest, patient=True
        )
        self._retry_for_s = work.origin.retry_for_s
        row_bytes = work.record.spec.image.row_bytes
        self._together = max(1, min(_DRAWN_TOGETHER, _BYTES_TOGETHER // row_bytes))
        self._engine_class = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def make(self, number: int, progress: Progress) -> ShardRecord:
        """Draw, write and record one shard; its bytes depend on the job and ``number`` alone.

        Raises:
            OutOfSpace: There is no room for it.
            JobError: The source draws with another model or engine than the job's.
            LatentryError: The source failed for longer than it may.
        """
        plan = self._record.plan.shard(number)
        self._engine_class = ""
        samples, missing, rejected = self._drawn(plan, progress)
        output, spec = self._job.output, self._record.spec
        data = shard_bytes(samples, output, spec.image, self._record.model_digest)
        record = ShardRecord(
            shard=number,
            file=self._record.shard_file(number),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            engine_class=self._engine_class,
            indices=tuple(sample.index for sample in samples),
            seeds=tuple(sample.seed for sample in samples),
            sample_sha256=tuple(sample.sha256 for sample in samples),
            by_class=_by_label(Counter(str(s.controls.get("class_label", "")) for s in samples)),
            missing=_by_label(missing),
            rejected=tuple(rejected),
        )
        self._storage.write(record.file, data)
        self._storage.write(self._record.record_file(number), json_bytes(record))
        return record

    def draw_samples(self, plan: ShardPlan, count: int) -> list[Sample]:
        """Return the first ``count`` samples of a shard as they are before any is replaced."""
        places = np.arange(min(count, len(plan)))
        judged = self._judged(plan, places, plan.seeds[places], None)
        return [sample for sample, _ in judged if sample]

    def _drawn(
        self, plan: ShardPlan, progress: Progress
    ) -> tuple[list[Sample], Counter[str], list[Rejection]]:
        """Draw until every place of the shard has a sample or the reserve is used up.

        Round by round: all places with their own seeds, then those rejected, in order, with the
        next seeds of the reserve; so the outcome does not depend on who answers when.
        """
        accepted: dict[int, Sample] = {}
        rejected: list[Rejection] = []
        seen: set[str] = set()
        reserve = iter(plan.reserve)
        places, seeds = np.arange(len(plan)), plan.seeds
        while len(places):
            again: list[int] = []
            for part in split(len(places), self._together):
                judged = self._judged(plan, places[part], seeds[part], seen)
                progress(sum(sample is not None for sample, _ in judged))
                for place, seed, (sample, reason) in zip(
                    places[part].tolist(), seeds[part].tolist(), judged, strict=True
                ):
                    if sample:
                        accepted[place] = sample
                    else:
                        again.append(place)
                        index = plan.first_index + place
                        rejected.append(Rejection(index=index, seed=seed, reason=reason))
            replacements = [seed for _, seed in zip(again, reserve, strict=False)]
            places = np.array(again[: len(replacements)], np.int64)
            seeds = np.array(replacements, np.int64)
        lost = sorted(set(range(len(plan))) - set(accepted))
        labels = plan.labels[lost].tolist() if plan.labels is not None else [""] * len(lost)
        return [accepted[place] for place in sorted(accepted)], Counter(map(str, labels)), rejected

    def _judged(
        self,
        plan: ShardPlan,
        places: NDArray[np.int64],
        seeds: NDArray[np.int64],
        seen: set[str] | None,
    ) -> list[tuple[Sample | None, str]]:
        """Draw ``seeds`` for ``places``; return for each the sample, or why there is none.

        ``seen`` None asks no filter.
        """
        labels = None if plan.labels is None else plan.labels[places]
        controls = self._job.controls_of(self._record.spec, seeds, labels)
        images, finite = self._images(seeds, controls)
        hashes = [pixel_sha256(image) for image in images]
        reasons: list[str | None] = [None if fine else "NaN or infinity" for fine in finite]
        if seen is not None:
            self._ask_filters(Batch(images, seeds, controls, hashes, seen), reasons)
        kept = [place for place, reason in enumerate(reasons) if reason is None]
        vectors = dict(zip(kept, self._vectors(images[kept]), strict=True))
        judged: list[tuple[Sample | None, str]] = []
        for place, reason in enumerate(reasons):
            if reason is not None:
                judged.append((None, reason))
                continue
            sample = Sample(
                index=plan.first_index + int(places[place]),
                seed=int(seeds[place]),
                controls={role: values[place] for role, values in controls.items()},
                sha256=hashes[place],
                data=data_from_image(images[place], self._job.output.image),
                features=vectors[place],
            )
            judged.append((sample, ""))
        return judged

    def _ask_filters(self, batch: Batch, reasons: list[str | None]) -> None:
        """Put the reasons of the filters in; each is asked of what those before it let pass."""
        for judge in self._filters:
            kept = [place for place, reason in enumerate(reasons) if reason is None]
            if not kept:
                return
            part = Batch(
                images=batch.images[kept],
                seeds=batch.seeds[kept],
                controls={role: values[kept] for role, values in batch.controls.items()},
                sha256=[batch.sha256[place] for place in kept],
                seen=batch.seen,
            )
            for place, reason in zip(kept, judge.judge(part), strict=True):
                reasons[place] = reason

    def _vectors(self, images: Uint8) -> NDArray[np.float32]:
        if self._features is None or not len(images):
            return np.empty((len(images), 0), np.float32)
        vectors = self._features.run(images)
        return vectors.reshape(len(vectors), -1).astype(np.float32)

    def _images(
        self, seeds: NDArray[np.int64], controls: Controls
    ) -> tuple[Uint8, NDArray[np.bool_]]:
        """Return uint8 [N, H, W, C] and where the images are finite; the others are black."""
        images = np.zeros((len(seeds), *self._record.spec.image.row_shape), np.uint8)
        finite = np.ones(len(seeds), np.bool_)
        retries = Retries(policy_from_retry_for_s(self._retry_for_s), Deadline(None))
        while finite.any():
            try:
                result = self._client.generate(
                    self._job.model,
                    seeds=seeds[finite],
                    class_label=_chosen(controls, "class_label", finite),
                    truncation_psi=_chosen(controls, "truncation_psi", finite),
                )
            except InvalidOutput as error:
                if not error.seeds:
                    raise
                finite &= ~np.isin(seeds, error.seeds)
                continue
            except TimedOut as error:  # a server that hangs may come to itself, or be restarted
                time.sleep(retries.delay_s(error))
                continue
            self._check_source(result.info)
            images[finite] = result.images
            break
        return images, finite

    def _check_source(self, info: ModelInfo) -> None:
        record = self._record
        if info.model_digest != record.model_digest:
            raise JobError(
                f"{info.name} has the model digest {info.model_digest} now; this job draws from "
                f"{record.model_digest}. Serve that version again, or give another --out"
            )
        if record.engine_class not in ("any", info.engine_class):
            raise JobError(
                f"{info.name} is drawn by {info.engine_class} now; this job's images come from "
                f"{record.engine_class} and would differ in single bits"
            )
        self._engine_class = info.engine_class


def record_from_job(job: Job, info: ModelInfo) -> JobRecord:
    """Return the record of ``job`` as drawn by the model ``info``.

    Raises:
        BadRequest: The job asks what the model does not take, or does not fit in the seeds.
        JobError: The job pins another model digest.
        NotFound: A file of a filter is missing.
    """
    if job.model_digest not in (None, info.model_digest):
        raise JobError(
            f"the job asks for {job.model} with the model digest {job.model_digest}; here it is "
            f"{info.model_digest}"
        )
    job.check(info.spec)
    plan = plan_from_job(job, info.spec)
    for options in job.filters:
        options.load()  # so that one which cannot be used is found before anything is written
    if job.output.features:
        load_network(job.output.features)
    return JobRecord(
        # Which digest is meant stands beside it, whether or not the job named one.
        job=job.model_copy(update={"model_digest": None}),
        model_digest=info.model_digest,
        engine_class=job.engine_class or info.engine_class,
        spec=info.spec,
        # A job that takes any engine gives up equal bytes, and need not ask for equal encoders.
        encoders={} if job.engine_class else _versions(job),
        files=file_hashes(_judges(job)),
        samples=plan.samples,
        shards=plan.shards,
    )


def _judges(job: Job) -> list[FilterOptions | NetworkOptions]:
    """Return what works on images beside the generator, in the job's own processes."""
    return [*job.filters, *([job.output.features] if job.output.features else [])]


def _versions(job: Job) -> dict[str, str]:
    """Return the versions of everything but the generator's engine on which a byte depends."""
    versions = encoder_versions(job.output)
    networks = any(isinstance(options, NetworkOptions) for options in _judges(job))
    return {**versions, **network_versions()} if networks else versions


def open_record(job: Job, origin: Origin, begun: str | None = None) -> JobRecord:
    """Return the record of ``job`` for the model that ``origin`` offers; errors as above.

    A repository may have newer versions of the model by now; a job that was ``begun`` with a model
    digest goes on with it.
    """
    with origin.open_client(job.model, job.model_digest or begun) as client:
        return record_from_job(job, client.info(job.model))


def begun_digest(storage: Storage) -> str | None:
    """Return the model digest of the job in ``storage``; None where there is none yet."""
    return read_job(storage).model_digest if JOB_FILE in storage.sizes() else None


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
        storage.write(JOB_FILE, json_bytes(record, indent=2))
        return
    before = json.loads(storage.read(JOB_FILE))
    found = list(_differences(before, json.loads(json_bytes(record))))
    if found and set(sizes) == {JOB_FILE}:
        storage.write(JOB_FILE, json_bytes(record, indent=2))  # nothing was made by the other one
    elif found:
        engines = any(text.startswith(("engine_class", "encoders")) for text in found)
        advice = ' (engine_class = "any" in the job allows other engines from the start)' * engines
        raise JobError(
            f"{storage.url} was started differently: {'; '.join(found)}. Go on as it was started, "
            f"or give another --out{advice}"
        )


def check_index(storage: Storage, record: JobRecord) -> None:
    """Check the records that are there against the index, which a whole job has.

    Raises:
        JobError: One was changed since; to go on would make that official.
    """
    if INDEX_FILE not in storage.sizes():
        return
    try:
        files = json.loads(storage.read(INDEX_FILE))["files"]
        hashes = {item["record"]: item["record_sha256"] for item in files}
    except (ValueError, LookupError, TypeError):
        hashes = {}
    for made in made_shards(storage, record):
        name = record.record_file(made.shard)
        if hashes.get(name) != hashlib.sha256(json_bytes(made)).hexdigest():
            raise JobError(
                f"{storage.url}/{name} was changed since the job was whole, or {INDEX_FILE} was; "
                "`latentry synthesize verify` says more. Delete what is wrong, and the same "
                "command makes it again"
            )


def read_job(storage: Storage) -> JobRecord:
    """Return the record of the job in ``storage``.

    Raises:
        JobError: There is none, or it is not understood.
    """
    if JOB_FILE not in storage.sizes():
        raise JobError(f"{storage.url} holds no {JOB_FILE}; give the folder of a job")
    try:
        return JobRecord.model_validate_json(storage.read(JOB_FILE), context={"recorded": True})
    except ValidationError as error:
        raise JobError(
            f"{storage.url}/{JOB_FILE} is damaged ({explain(error)}); put it back, or give another "
            "--out"
        ) from error


def read_shard_record(storage: Storage, record: JobRecord, number: int) -> ShardRecord:
    """Return the record of a shard; raises JobError where it is damaged."""
    name = record.record_file(number)
    try:
        return ShardRecord.model_validate_json(storage.read(name))
    except ValidationError as error:
        raise JobError(
            f"{storage.url}/{name} is not understood: {explain(error)}; delete it, and the shard "
            "is made again"
        ) from error


def made_shards(storage: Storage, record: JobRecord) -> Iterator[ShardRecord]:
    """Yield the record of every shard that is there."""
    sizes = storage.sizes()
    for number in range(record.shards):
        if record.record_file(number) in sizes:
            found = read_shard_record(storage, record, number)
            if sizes.get(record.shard_file(number)) == found.size:
                yield found


def finish(storage: Storage, record: JobRecord) -> Totals:
    """Count what is there; where the job is whole, write the contact sheet and the index.

    Raises:
        JobError: A shard of the contact sheet is damaged.
    """
    totals = Totals()
    for made in made_shards(storage, record):
        totals.add(made)
    if totals.samples == record.samples:
        if record.job.output.image != "none":
            storage.write(CONTACT_SHEET_FILE, contact_sheet(storage, record))
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
                "record_sha256": hashlib.sha256(json_bytes(shard)).hexdigest(),
            }
        )
    index = {
        "model": record.job.model,
        "model_digest": record.model_digest,
        "job_sha256": hashlib.sha256(storage.read(JOB_FILE)).hexdigest(),
        **totals.as_json(),
        "files": shards,
    }
    if record.job.output.image != "none":
        sheet = storage.read(CONTACT_SHEET_FILE)
        index["contact_sheet_sha256"] = hashlib.sha256(sheet).hexdigest()
    return json.dumps(index, indent=1).encode() + b"\n"


def contact_sheet(storage: Storage, record: JobRecord) -> bytes:
    """Return a PNG of a few samples of a few shards, evenly spread over the job."""
    numbers = np.unique(np.linspace(0, record.shards - 1, _SHEET_SHARDS).astype(int))
    per_shard = _SHEET_SHARDS * _SHEET_SAMPLES // len(numbers)
    output, image = record.job.output, record.spec.image
    images: list[Uint8] = []
    for turn, number in enumerate(numbers.tolist()):
        name = record.shard_file(number)
        samples = samples_of_shard(storage, record, name, storage.read(name))
        # Each row begins where the one above ended, so that it goes through the classes.
        first = turn * per_shard % max(1, record.plan.size(number) - per_shard)
        for sample in itertools.islice(samples, first, first + per_shard):
            images.append(image_from_data(sample.data, output.image, image))
    return png_from_uint8(grid_from_images(images))


def samples_of_shard(
    storage: Storage, record: JobRecord, name: str, data: bytes
) -> Iterator[Sample]:
    """Yield the samples of a shard's file; raises JobError where it is damaged."""
    try:
        yield from read_shard(data, record.job.output, record.spec.image)
    except Exception as error:  # tarfile, pyarrow and Pillow share no base of theirs
        raise JobError(
            f"{storage.url}/{name} cannot be read ({type(error).__name__}: {error}); delete it, "
            "and the shard is made again"
        ) from error


def json_bytes(value: BaseModel, indent: int | None = None) -> bytes:
    """Return a record as its file holds it."""
    return value.model_dump_json(indent=indent).encode() + b"\n"


def _chosen(controls: Controls, role: str, where: NDArray[np.bool_]) -> NDArray[Any] | None:
    return controls[role][where] if role in controls else None


def _by_label(counts: Counter[str]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: (len(item[0]), item[0]))
    return {label: count for label, count in ordered if count}


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


def shards_to_make(storage: Storage, record: JobRecord, limit: int | None) -> tuple[list[int], int]:
    """Return the numbers of the shards that are missing, and the samples that are there.

    Args:
        storage: Where the job is.
        record: The job.
        limit: Only the shards that hold the first so many samples; None for all.
    """
    last = record.shards if limit is None else record.plan.shards_of_first(limit)
    made = {shard.shard: len(shard.seeds) for shard in made_shards(storage, record)}
    there = sum(count for number, count in made.items() if number < last)
    return [number for number in range(last) if number not in made], there


Crew = Callable[[Work, Iterable[int], Progress], Iterator[ShardRecord]]
"""Makes the shards with these numbers, in any order, and yields their records."""


def make_here(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[ShardRecord]:
    """Make shards in this process; a :data:`Crew`."""
    with ShardMaker(work) as maker:
        for number in numbers:
            yield maker.make(number, progress)


def run_job(
    job: Job,
    origin: Origin,
    out: str,
    *,
    crew: Crew = make_here,
    limit: int | None = None,
    take_over: bool = False,
    on_start: Callable[[JobRecord, int, int], None] = lambda *_: None,
    progress: Progress = lambda _: None,
) -> Totals:
    """Make what is missing of a job in ``out``; return what is there then.

    Args:
        job: What to make.
        origin: Where samples are drawn.
        out: A folder, or a URL that fsspec knows.
        crew: Who makes the shards.
        limit: Only the shards that hold the first so many samples.
        take_over: Whether to go on although another machine's process holds the lock.
        on_start: Told the job's record, the samples to make now, and those that are there.
        progress: Told of every sample.

    Raises:
        BadRequest: The job asks for what there is not.
        JobError: The folder is in use, or of another job.
        OutOfSpace: The disk is full; what is made stays, and the same call goes on.
        LatentryError: The source failed.
    """
    storage = storage_from_url(out)
    record = open_record(job, origin, begun_digest(storage))
    with storage.locked(take_over=take_over):
        begin(storage, record)
        check_index(storage, record)
        numbers, there = shards_to_make(storage, record, limit)
        on_start(record, sum(record.plan.size(number) for number in numbers), there)
        if numbers:
            storage.remove(INDEX_FILE)  # of when the job was whole
            for _ in crew(Work(record, origin, storage.url), numbers, progress):
                pass
        return finish(storage, record)
