"""Making one shard of a job: draw, judge, replace, write, record; or find it there and sound."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latentry.clients.client import Client
from latentry.clients.results import GenerateResult
from latentry.clients.retry import Deadline, Retries, policy_from_retry_for_s
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.contract.errors import (
    BadRequest,
    InvalidOutput,
    JobError,
    LatentryError,
    ServerFault,
    TimedOut,
    listed,
)
from latentry.contract.images import Uint8
from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo
from latentry.synthesis.filters.filters import FilterOptions, file_hashes
from latentry.synthesis.filters.judging import Candidates
from latentry.synthesis.filters.network import NetworkOptions, load_network
from latentry.synthesis.job import InputRows, Job, class_name
from latentry.synthesis.plan import ShardPlan
from latentry.synthesis.records import (
    INDEX_FILE,
    JobRecord,
    Rejection,
    ShardRecord,
    by_label,
    check_shard,
    most_record_bytes,
)
from latentry.synthesis.sinks.output_data import sample_sha256
from latentry.synthesis.sinks.sample import MOST_FEATURES, Sample
from latentry.synthesis.sinks.shards import shard_bytes
from latentry.synthesis.sources.pictures import (
    Folders,
    Pictures,
    groups_of_one_size,
    stacked,
)
from latentry.synthesis.storage.urls import storage_from_url

DEFAULT_RETRY_FOR_S = 300.0

# Samples that are asked for together: enough requests in flight to keep a server busy.
_DRAWN_TOGETHER, _BYTES_TOGETHER = 256, 64 * 2**20

Progress = Callable[[int], None]
"""Told how many more samples are accepted; a negative number when work was lost."""


@dataclass(frozen=True)
class Origin:
    """Where samples are drawn.

    Attributes:
        repository: The model repository, to draw without a server; None asks the server.
        server: The server.
        retry_for_s: Seconds to wait for a server that is busy or gone, from the start on; None
            waits :data:`DEFAULT_RETRY_FOR_S`, but not for one that is not there at the start.
    """

    repository: Path | None = None
    server: Server = DEFAULT_SERVER
    retry_for_s: float | None = None

    @property
    def patience_s(self) -> float:
        """Seconds to wait for a server that was there."""
        return DEFAULT_RETRY_FOR_S if self.retry_for_s is None else self.retry_for_s

    def open_client(
        self,
        model: str,
        model_digest: str | None = None,
        build: str | None = None,
        *,
        patient: bool = False,
    ) -> Client:
        """Return a client that draws with one thread here, or asks the server.

        A ``patient`` one waits for a server that was there and is busy or gone now.

        Raises:
            NotFound: The repository lacks the model, the version with this digest, or its build.
            EntryError: The entry is damaged.
        """
        if self.repository is None:
            retry_for_s = self.patience_s if patient else self.retry_for_s
            return self.server.open_client(
                token_called="--token-file", timeout_s=None, retry_for_s=retry_for_s
            )
        from latentry.serving.runtime.local import LocalTransport

        transport = LocalTransport(
            self.repository, (model,), threads=1, model_digest=model_digest, build=build
        )
        return Client(transport=transport, timeout_s=None)


@dataclass(frozen=True)
class Work:
    """What a worker has to know to make any shard of a job."""

    record: JobRecord
    origin: Origin
    out: str


@dataclass(frozen=True)
class Settled:
    """A shard that is there now.

    Attributes:
        record: What it holds.
        is_new: Whether it was made just now; else it was there and sound.
        fault: What was wrong with the one that was there before; empty for nothing.
    """

    record: ShardRecord
    is_new: bool
    fault: str = ""


class ShardMaker:
    """Settles shards of one job, one after the other; each worker has one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._storage = storage_from_url(work.out)
        self._drawer: SampleDrawer | None = None  # networks and a client: only where one is made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawer:
            self._drawer.close()

    def settle(self, number: int, progress: Progress) -> Settled:
        """Return a shard that is there and sound as it is, and make any other.

        Raises:
            OutOfSpace: There is no room for it.
            JobError: The source draws with another model or engine than the job's.
            LatentryError: The source failed for longer than it may.
        """
        fault = ""
        if self._storage.holds(self._work.record.record_file(number)):
            try:
                return Settled(check_shard(self._storage, self._work.record, number), is_new=False)
            except JobError as error:
                fault = str(error)
                self._storage.remove(INDEX_FILE)  # of when the job was whole
        return Settled(self._make(number, progress), is_new=True, fault=fault)

    def _make(self, number: int, progress: Progress) -> ShardRecord:
        """Draw, write and record one shard; its bytes depend on the job and ``number`` alone."""
        job = self._work.record
        self._drawer = self._drawer or SampleDrawer(job, self._work.origin)
        drawn = self._drawer.draw(job.plan.shard(number), progress)
        name = class_name(job.spec)
        labels = (str(sample.inputs.get(name, "")) for sample in drawn.samples)
        data = shard_bytes(drawn.samples, job.job.output, job.spec, job.model_digest)
        record = ShardRecord(
            shard=number,
            file=job.shard_file(number),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            engine_class=drawn.engine_class,
            indices=tuple(sample.index for sample in drawn.samples),
            seeds=tuple(sample.seed for sample in drawn.samples),
            sample_sha256=tuple(sample.sha256 for sample in drawn.samples),
            by_class=by_label(Counter(labels)),
            missing=by_label(drawn.missing),
            rejected=tuple(drawn.rejected),
            md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        ).sealed()
        recorded = record.as_bytes()
        if len(recorded) > (most := most_record_bytes(job, number)):
            raise JobError(
                f"the record of shard {number} takes {len(recorded):,} bytes, over {most:,}: "
                f"{len(drawn.rejected):,} seeds were rejected; give a smaller shard_size, or "
                "lower [samples] reserve"
            )
        self._storage.write(record.file, data)
        self._storage.write(job.record_file(number), recorded)
        return record


@dataclass(frozen=True)
class Drawn:
    """The samples of a shard.

    Attributes:
        samples: Those accepted, in order.
        missing: How many of each class label are not there, the reserve being used up or their
            pictures bad.
        rejected: Seeds that were replaced, and those of bad pictures.
        engine_class: What drew them.
    """

    samples: list[Sample]
    missing: Counter[str]
    rejected: list[Rejection]
    engine_class: str


class _Judged(NamedTuple):
    """What became of a seed: a sample, or why there is none; and whether any seed would do."""

    sample: Sample | None
    reason: str = ""
    is_hopeless: bool = False


class SampleDrawer:
    """Draws the samples of shards from a job's source, and asks its filters."""

    def __init__(self, record: JobRecord, origin: Origin) -> None:
        self._record = record
        self._job = record.job
        if file_hashes(judges(self._job)) != record.files:
            raise JobError(
                "a file of the job's filters was changed while the job ran; put it back "
                f"({listed(record.files)}), or give another --out"
            )
        self._folders = Folders(record.spec, self._job.folders)
        if self._folders.records != record.folders:
            raise JobError(
                f"a folder of the job ({listed(record.folders)}) has gained, lost or renamed files "
                "while the job ran; put it back, or give another --out"
            )
        self._filters = [options.load() for options in self._job.filters]
        features = self._job.output.features
        self._features = load_network(features) if features else None
        self._client = origin.open_client(
            self._job.model, record.model_digest, record.build_digest, patient=True
        )
        self._patience_s = origin.patience_s
        self._outputs = self._job.output.of_sample(record.spec)
        self._together = samples_together(record.spec, self._folders.row_bytes)
        self._engine_class = ""

    def close(self) -> None:
        """Let the source go."""
        self._client.close()

    def draw_samples(self, plan: ShardPlan, count: int) -> list[Sample]:
        """Return the first ``count`` samples of a shard as they are before any is replaced."""
        samples: list[Sample] = []
        for start in range(0, min(count, len(plan)), self._together):
            places = np.arange(start, min(count, len(plan), start + self._together))
            judged = self._judged(plan, places, plan.seeds[places], None)
            samples += [item.sample for item in judged if item.sample]
        return samples

    def draw(self, plan: ShardPlan, progress: Progress) -> Drawn:
        """Draw until every place of the shard has a sample, a bad picture, or no seed any more.

        Round by round: all places with their own seeds, then those rejected, in order, with the
        next seeds of the reserve; so the outcome does not depend on who answers when.
        """
        self._engine_class = ""
        accepted: dict[int, Sample] = {}
        rejected: list[Rejection] = []
        seen: set[str] = set()
        reserve = iter(plan.reserve)
        places, seeds = np.arange(len(plan)), plan.seeds
        while len(places):
            again: list[int] = []
            for start in range(0, len(places), self._together):
                part = slice(start, start + self._together)
                judged = self._judged(plan, places[part], seeds[part], seen)
                progress(sum(item.sample is not None for item in judged))
                for place, seed, item in zip(
                    places[part].tolist(), seeds[part].tolist(), judged, strict=True
                ):
                    if item.sample:
                        accepted[place] = item.sample
                        continue
                    index = plan.first_index + place
                    rejected.append(Rejection(index=index, seed=seed, reason=item.reason))
                    if not item.is_hopeless:
                        again.append(place)
            replacements = [seed for _, seed in zip(again, reserve, strict=False)]
            places = np.array(again[: len(replacements)], np.int64)
            seeds = np.array(replacements, np.int64)
        lost = sorted(set(range(len(plan))) - set(accepted))
        labels = plan.labels[lost].tolist() if plan.labels is not None else [""] * len(lost)
        samples = [accepted[place] for place in sorted(accepted)]
        return Drawn(samples, Counter(map(str, labels)), rejected, self._engine_class)

    def _judged(
        self,
        plan: ShardPlan,
        places: NDArray[np.int64],
        seeds: NDArray[np.int64],
        seen: set[str] | None,
    ) -> list[_Judged]:
        """Draw ``seeds`` for ``places``; return for each the sample, or why there is none.

        ``seen`` None asks no filter.
        """
        labels = None if plan.labels is None else plan.labels[places]
        inputs = self._job.inputs_of(self._record.spec, seeds, labels)
        pictures = self._folders.read((plan.first_index + places).tolist())
        drawn, finite = self._draw(seeds, inputs, pictures)
        images = self._looked_at(drawn)
        rows = zip(*drawn.values(), strict=True)
        hashes = [sample_sha256(self._outputs, row) for row in rows]
        reasons = [
            fault or (None if fine else "NaN or infinity")
            for fault, fine in zip(pictures.faults, finite, strict=True)
        ]
        if seen is not None:
            asked = inputs.get(class_name(self._record.spec))
            self._ask_filters(Candidates(images, seeds, inputs, asked, hashes, seen), reasons)
        kept = [place for place, reason in enumerate(reasons) if reason is None]
        vectors = dict(zip(kept, self._vectors(images[kept]), strict=True))
        judged: list[_Judged] = []
        for place, reason in enumerate(reasons):
            if reason is not None:
                judged.append(_Judged(None, reason, is_hopeless=bool(pictures.faults[place])))
                continue
            sample = Sample(
                index=plan.first_index + int(places[place]),
                seed=int(seeds[place]),
                inputs={
                    **{name: values[place] for name, values in inputs.items()},
                    **pictures.facts[place],
                },
                sha256=hashes[place],
                data={
                    output.name: output.data(drawn[output.name][place])
                    for output in self._outputs
                    if output.is_written
                },
                features=vectors[place],
            )
            judged.append(_Judged(sample))
        return judged

    def _ask_filters(self, candidates: Candidates, reasons: list[str | None]) -> None:
        """Put the reasons of the filters in; each is asked of what those before it let pass."""
        for judge in self._filters:
            kept = [place for place, reason in enumerate(reasons) if reason is None]
            if not kept:
                return
            part = Candidates(
                images=candidates.images[kept],
                seeds=candidates.seeds[kept],
                inputs={name: values[kept] for name, values in candidates.inputs.items()},
                labels=None if candidates.labels is None else candidates.labels[kept],
                sha256=[candidates.sha256[place] for place in kept],
                seen=candidates.seen,
            )
            for place, reason in zip(kept, judge.judge(part), strict=True):
                reasons[place] = reason

    def _vectors(self, images: Uint8) -> NDArray[np.float32]:
        if self._features is None or not len(images):
            return np.empty((len(images), 0), np.float32)
        vectors = self._features.run(images)
        vectors = vectors.reshape(len(vectors), -1).astype(np.float32)
        if vectors.shape[1] > MOST_FEATURES:
            raise BadRequest(
                f"[output.features] gives {vectors.shape[1]:,} numbers for an image; a vector has "
                f"at most {MOST_FEATURES:,}"
            )
        return vectors

    def _looked_at(self, drawn: Mapping[str, Sequence[NDArray[Any]]]) -> Uint8:
        """Return the main pictures for filters and networks; of no size where nobody looks."""
        main = self._outputs[0]
        if main.is_main and any(judge.needs_picture for judge in judges(self._job)):
            return np.stack(drawn[main.name])
        return np.empty((len(next(iter(drawn.values()))), 0, 0, 1), np.uint8)

    def _draw(
        self, seeds: NDArray[np.int64], inputs: InputRows, pictures: Pictures
    ) -> tuple[dict[str, list[NDArray[Any]]], NDArray[np.bool_]]:
        """Return the rows of each output, by what shards call it, and where all are finite.

        Those that are not, and those of bad pictures, which are not drawn, are zeros.
        """
        drawn = {
            output.name: [np.zeros([max(side, 0) for side in output.shape], output.dtype)]
            * len(seeds)
            for output in self._outputs
        }
        finite = np.zeros(len(seeds), np.bool_)
        sound = [place for place, fault in enumerate(pictures.faults) if not fault]
        groups = groups_of_one_size([pictures.rows[place] for place in sound])
        parts = [np.array(sound, np.int64)[group] for group in groups]
        while parts:
            part = parts.pop()
            if not len(part):
                continue
            rows = {name: values[part] for name, values in inputs.items()}
            rows |= stacked([pictures.rows[place] for place in part])
            try:
                result = self._generate(seeds[part], rows)
            except InvalidOutput as error:
                parts += self._parts_without(part, seeds, error)
                continue
            self._check_source(result.info)
            for output in self._outputs:
                for place, row in zip(part, result[output.item.name], strict=True):
                    drawn[output.name][place] = row
            finite[part] = True
        return drawn, finite

    def _parts_without(
        self, part: NDArray[np.int64], seeds: NDArray[np.int64], error: InvalidOutput
    ) -> list[NDArray[np.int64]]:
        """Return what of a ``part`` is left to draw, of which something was not finite."""
        if not self._record.spec.takes_seed:  # nobody says which it was
            return np.array_split(part, 2) if len(part) > 1 else []
        bad = np.isin(seeds[part], error.seeds)
        if not bad.any():
            raise error
        return [part[~bad]]

    def _generate(self, seeds: NDArray[np.int64], inputs: InputRows) -> GenerateResult:
        retries = Retries(policy_from_retry_for_s(self._patience_s), Deadline(None))
        while True:
            try:
                return self._client.generate(
                    self._job.model,
                    seeds=seeds if self._record.spec.takes_seed else None,
                    **inputs,
                )
            except TimedOut as error:  # a server that hangs may come to itself, or be restarted
                time.sleep(retries.delay_s(error))
            except ServerFault:
                self._check_replaced()
                raise

    def _check_replaced(self) -> None:
        """Say what the job draws from where the server came back as another in a call's midst."""
        try:
            info = self._client.info(self._job.model)
        except LatentryError:
            return
        self._check_source(info)

    def _check_source(self, info: ModelInfo) -> None:
        record = self._record
        record.check_source(info)
        if record.engine_class not in ("any", info.engine_class):
            raise JobError(
                f"{info.name} is drawn by {info.engine_class} now; this job's samples come from "
                f"{record.engine_class} and would differ in single bits"
            )
        self._engine_class = info.engine_class


def samples_together(spec: GeneratorSpec, pictures_bytes: int) -> int:
    """Return how many samples are asked for together, whose pictures take so many bytes each."""
    row_bytes = spec.row_bytes(Format.RAW) + pictures_bytes
    return max(1, min(_DRAWN_TOGETHER, _BYTES_TOGETHER // row_bytes))


def judges(job: Job) -> list[FilterOptions | NetworkOptions]:
    """Return what works on samples beside the generator, in the job's own processes."""
    return [*job.filters, *([job.output.features] if job.output.features else [])]
