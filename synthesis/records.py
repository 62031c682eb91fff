"""The files of a job's folder beside its shards, and what is believed of them.

``job.json`` holds everything on which a byte depends, ``shard-000012.json`` what a shard holds, and
``index.json`` all hashes of a whole job. Whoever reads one trusts nothing in it: sizes are bounded,
types strict, and a shard's record must carry its own hash and fit the plan.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from latentry.contract.errors import BadRequest, JobError
from latentry.contract.files import parse_json
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import GeneratorSpec
from latentry.contract.strict import Strict, explain
from latentry.contract.transport import ModelInfo
from latentry.synthesis.job import Job
from latentry.synthesis.plan import JobPlan, plan_from_job
from latentry.synthesis.sinks.formats import FORMATS
from latentry.synthesis.sinks.shards import most_shard_bytes, shard_stem
from latentry.synthesis.sources.listing import FolderRecord
from latentry.synthesis.storage.protocol import Storage

JOB_FILE = "job.json"
INDEX_FILE = "index.json"
CONTACT_SHEET_FILE = "contact-sheet.png"

_MOST_REASONS, _MOST_TEXT = 100, 500
# The largest files that are read: a bound, and what each sample or shard may add to it. A million
# samples and as many rejected seeds take less than the most of a record.
_RECORD_BYTES, _RECORD_BYTES_EACH, _MOST_RECORD_BYTES = 16 * 2**20, 8 * 2**10, 256 * 2**20
_INDEX_BYTES, _INDEX_BYTES_EACH = 64 * 2**20, 2**10

_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
_Count = Annotated[int, Field(ge=0, le=MAX_SEED + 1)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# As the server tells it; what is longer is in no message of one line.
_Digest = Annotated[str, Field(max_length=64)]


class JobRecord(Strict):
    """``job.json``: the job, and everything else on which a byte of its shards depends."""

    format: Literal[3] = 3
    job: Job
    model_digest: _Digest
    build: Annotated[str, Field(pattern="^[a-z0-9_]+-[a-z0-9_]+$")]
    build_digest: _Digest
    engine_class: str
    spec: GeneratorSpec
    encoders: dict[str, str]
    files: dict[str, str]
    folders: dict[str, FolderRecord]
    samples: Annotated[int, Field(ge=1, le=MAX_SEED)]
    shards: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> Self:
        try:
            self.job.check(self.spec)
            plan = self.plan
        except BadRequest as error:
            raise ValueError(str(error)) from error
        counts = {name: folder.files for name, folder in self.folders.items()}
        if counts != dict.fromkeys(self.job.folders, self.samples):
            raise ValueError(f"its folders hold {counts} files, and it has {self.samples} samples")
        if (plan.samples, plan.shards) != (self.samples, self.shards):
            raise ValueError(
                f"it says {self.samples} samples in {self.shards} shards; its job makes "
                f"{plan.samples} in {plan.shards}"
            )
        return self

    def check_source(self, info: ModelInfo) -> None:
        """Check that ``info`` is what the job's samples are drawn by, up to the engine class.

        Raises:
            JobError: It is another model, or another build of it.
        """
        if info.model_digest != self.model_digest:
            raise JobError(
                f"{info.name} has the model digest {info.model_digest} now; this job draws from "
                f"{self.model_digest}. Serve that version again, or give another --out"
            )
        if info.build_digest != self.build_digest:
            served = f"`latentry serve --build {info.name}={self.build}`"
            again = "it was removed and made again as another one"
            raise JobError(
                f"{info.name} is run by the build {info.build} now ({info.build_digest[:12]}); "
                f"this job draws from {self.build} ({self.build_digest[:12]}). "
                f"{again if info.build == self.build else f'Serve that: {served}'}, or give "
                "another --out"
            )

    @cached_property
    def plan(self) -> JobPlan:
        """Which samples each shard holds."""
        return plan_from_job(self.job, self.spec)

    def shard_file(self, number: int) -> str:
        """Return the name of a shard's file."""
        return shard_stem(number, self.shards) + FORMATS[self.job.output.format].suffix

    def record_file(self, number: int) -> str:
        """Return the name of a shard's record."""
        return shard_stem(number, self.shards) + ".json"


class Rejection(Strict):
    """A seed that was drawn and not taken, and why."""

    index: _Seed
    seed: _Seed
    reason: str


class ShardRecord(Strict):
    """``shard-000012.json``: what a shard holds, and its hashes.

    Attributes:
        shard: Which one.
        file: Name of its file, with ``size`` in bytes and ``sha256``.
        engine_class: What drew it.
        indices: Place of each sample in the whole job.
        seeds: Of each sample.
        sample_sha256: SHA-256 of each sample's outputs.
        by_class: Number of samples of each class label; ``""`` where there are no classes.
        missing: Samples for which the reserve was used up, likewise.
        rejected: Seeds that were replaced.
        md5: Of the file; object stores tell it of theirs. Empty in records of version 0.2.
        seal: SHA-256 of the record without it. Empty in records of version 0.2.
    """

    shard: _Count
    file: str
    size: Annotated[int, Field(ge=0, lt=2**63)]
    sha256: _Sha256
    engine_class: str
    indices: tuple[_Seed, ...]
    seeds: tuple[_Seed, ...]
    sample_sha256: tuple[_Sha256, ...]
    by_class: dict[str, _Count]
    missing: dict[str, _Count]
    rejected: tuple[Rejection, ...]
    md5: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""
    seal: str = ""

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> Self:
        if not len(self.indices) == len(self.seeds) == len(self.sample_sha256):
            raise ValueError("indices, seeds and sample_sha256 differ in length")
        if self.seal and self.seal != self._digest():
            raise ValueError(f"its SHA-256 is {self._digest()}, its seal says {self.seal}")
        return self

    def sealed(self) -> Self:
        """Return the record with its seal."""
        return self.model_copy(update={"seal": self._digest()})

    def _digest(self) -> str:
        return hashlib.sha256(self.model_copy(update={"seal": ""}).as_bytes()).hexdigest()

    def as_bytes(self) -> bytes:
        """Return the file's bytes."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"


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

    def __init__(self) -> None:
        self.shards = self.samples = self.size = 0
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
            "by_class": by_label(self.by_class),
            "missing": by_label(self.missing),
            "rejected": dict(sorted(self.rejected.items())),
        }


def by_label(counts: Counter[str]) -> dict[str, int]:
    """Return counts in the order of class labels, without zeros."""
    ordered = sorted(counts.items(), key=lambda item: (len(item[0]), item[0]))
    return {label: count for label, count in ordered if count}


def job_bytes(record: JobRecord) -> bytes:
    """Return ``job.json``."""
    return record.model_dump_json(indent=2).encode() + b"\n"


def read_job(storage: Storage) -> JobRecord:
    """Return the record of the job in ``storage``.

    Raises:
        JobError: There is none, or it is not understood.
    """
    if JOB_FILE not in storage.sizes():
        raise JobError(f"{storage.url} holds no {JOB_FILE}; give the folder of a job")
    data = storage.read(JOB_FILE)
    try:
        return JobRecord.model_validate_json(data, strict=True, context={"recorded": True})
    except ValidationError as error:
        if any(item["loc"] == ("format",) for item in error.errors()):
            raise JobError(
                f"{storage.url}/{JOB_FILE} is of another version of Latentry; give another --out"
            ) from error
        raise JobError(
            f"{storage.url}/{JOB_FILE} is damaged ({explain(error)}); put it back, or give another "
            "--out"
        ) from error


def read_index(storage: Storage, record: JobRecord) -> dict[str, str]:
    """Return the SHA-256 of every other file of ours as the index says; {} where it is damaged."""
    try:
        data = storage.read(INDEX_FILE, most=most_index_bytes(record))
        index = parse_json(data)
        hashes = {str(item["record"]): item["record_sha256"] for item in index["files"]}
        if sheet := index.get("contact_sheet_sha256"):
            hashes[CONTACT_SHEET_FILE] = sheet
        hashes[JOB_FILE] = index["job_sha256"]
        is_sound = all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values())
        return hashes if is_sound else {}
    except (JobError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def read_record_bytes(storage: Storage, record: JobRecord, number: int) -> bytes:
    """Return the bytes of a shard's record; raises JobError where they cannot be read."""
    return storage.read(record.record_file(number), most=most_record_bytes(record, number))


def most_record_bytes(record: JobRecord, number: int) -> int:
    """Return the largest size that a shard's record may have."""
    samples = record.plan.size(number) + record.plan.reserve
    return min(_MOST_RECORD_BYTES, _RECORD_BYTES + samples * _RECORD_BYTES_EACH)


def most_index_bytes(record: JobRecord) -> int:
    """Return the largest size that the index may have."""
    return _INDEX_BYTES + record.shards * _INDEX_BYTES_EACH


def read_shard_record(storage: Storage, record: JobRecord, number: int) -> ShardRecord:
    """Return the record of a shard.

    Raises:
        JobError: It is missing, damaged, or does not fit the shard.
    """
    where = f"{storage.url}/{record.record_file(number)}"
    data = read_record_bytes(storage, record, number)
    try:
        made = ShardRecord.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise JobError(f"{where} is damaged: {explain(error)}") from error
    if made.as_bytes() != data:
        raise JobError(f"{where} is damaged: it is not written as records are")
    if misfit := _misfit(record, made, number):
        raise JobError(f"{where} does not fit the job: {misfit[:_MOST_TEXT]}")
    return made


def _misfit(record: JobRecord, made: ShardRecord, number: int) -> str:
    """Return what in the record of shard ``number`` contradicts the job; empty for nothing."""
    if (made.shard, made.file) != (number, record.shard_file(number)):
        return f"it is the record of shard {made.shard}, {made.file}"
    plan = record.plan.shard(number)
    if len(made.seeds) + sum(made.missing.values()) != len(plan):
        lost = sum(made.missing.values())
        return f"it has {len(made.seeds)} samples and misses {lost}; the plan says {len(plan)}"
    most = most_shard_bytes(record.job.output, record.spec, len(plan))
    if made.size > most:
        return f"its file has {made.size:,} bytes; {len(plan)} samples take at most {most:,}"
    if sum(made.by_class.values()) != len(made.seeds):
        return f"its classes have {sum(made.by_class.values())} samples, not {len(made.seeds)}"
    places = np.array(made.indices, np.int64) - plan.first_index
    if len(places) and (places[0] < 0 or places[-1] >= len(plan) or (np.diff(places) < 1).any()):
        return "its samples are not the shard's"
    seeds, reserve = np.array(made.seeds, np.int64), plan.reserve
    planned = (seeds >= plan.seeds[0]) & (seeds <= plan.seeds[-1])
    spare = (seeds >= reserve.start) & (seeds < reserve.stop)
    if not (planned | spare).all() or len(np.unique(seeds)) != len(seeds):
        return "its seeds are not the shard's"
    if made.seeds and record.engine_class not in ("any", made.engine_class):
        return f"it was drawn by {made.engine_class}, the job by {record.engine_class}"
    return ""


def check_shard(storage: Storage, record: JobRecord, number: int) -> ShardRecord:
    """Return the record of a shard whose file is the one that was written.

    A store that tells the file's MD5 is believed; otherwise the file is read and hashed.

    Raises:
        JobError: The record or the file is missing, damaged, or does not fit the shard.
    """
    made = read_shard_record(storage, record, number)
    where = f"{storage.url}/{made.file}"
    size, md5 = storage.told(made.file)
    if size != made.size:
        raise JobError(f"{where} was changed: it has {size:,} bytes, its record says {made.size:,}")
    if not (md5 and md5 == made.md5):
        found = storage.sha256(made.file, most=size)
        if found != made.sha256:
            raise JobError(
                f"{where} was changed: its SHA-256 is {found}, its record says {made.sha256}"
            )
    return made


def made_shards(
    storage: Storage, record: JobRecord, faults: list[str] | None = None
) -> Iterator[ShardRecord]:
    """Yield the record of every shard that is there, by names and sizes.

    Those that are damaged are left out; why goes to ``faults``.
    """
    sizes = storage.sizes()
    for number in range(record.shards):
        if record.record_file(number) in sizes:
            try:
                found = read_shard_record(storage, record, number)
            except JobError as error:
                if faults is not None:
                    faults.append(str(error))
                continue
            if sizes.get(record.shard_file(number)) == found.size:
                yield found
