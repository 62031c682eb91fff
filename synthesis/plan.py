"""A job's plan: which samples each shard holds, from the job alone.

Shard k has its own seeds and its own reserve of seeds, so any worker on any machine makes the same
shard k.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import Job

_SHARD_SIZE = 1000
_SHARD_BYTES = 256 * 2**20
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True)
class ShardPlan:
    """The samples of one shard.

    Attributes:
        first_index: Index of its first sample in the whole job.
        seeds: int64 [N], one for each sample.
        labels: Class labels int64 [N]; None where the job counts no classes.
        reserve: Seeds that take the places of rejected ones, in this order.
    """

    first_index: int
    seeds: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    reserve: range

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class JobPlan:
    """How a job falls into shards.

    Attributes:
        first_seed: Seed of the sample with index 0.
        counts: (class label or None, samples) of the whole job.
        shards: Number of shards.
        reserve: Seeds in each shard's reserve; they follow the seeds of all samples.
    """

    first_seed: int
    counts: tuple[tuple[int | None, int], ...]
    shards: int
    reserve: int

    @cached_property
    def samples(self) -> int:
        """Number of samples of the whole job."""
        return sum(count for _, count in self.counts)

    def first_index(self, number: int) -> int:
        """Return the index of the first sample of shard ``number``."""
        each, more = divmod(self.samples, self.shards)
        return number * each + min(number, more)

    def size(self, number: int) -> int:
        """Return how many samples shard ``number`` holds."""
        return self.first_index(number + 1) - self.first_index(number)

    def shard(self, number: int) -> ShardPlan:
        """Return the samples of shard ``number``.

        Every class is spread evenly over the shards and goes round in turn inside each.
        """
        first, size = self.first_index(number), self.size(number)
        seeds = np.arange(self.first_seed + first, self.first_seed + first + size, dtype=np.int64)
        labelled = self.counts[0][0] is not None
        start = self.first_seed + self.samples + number * self.reserve
        return ShardPlan(
            first_index=first,
            seeds=seeds,
            labels=_in_turn(self._shares(number)) if labelled else None,
            reserve=range(start, start + self.reserve),
        )

    def shard_of(self, index: int) -> int:
        """Return the number of the shard that holds the sample with this index."""
        return bisect.bisect_right(range(1, self.shards), index, key=self.first_index)

    def shards_of_first(self, samples: int) -> int:
        """Return how many shards hold the first ``samples`` samples."""
        return self.shard_of(min(samples, self.samples) - 1) + 1

    def _shares(self, number: int) -> list[tuple[int | None, int]]:
        """Return (class label, samples) of shard ``number``.

        What is left of a class after as many for each shard goes to the shards next in turn, where
        what was left of the class before has ended; so the shards' sizes are within one.
        """
        shares, turn = [], 0
        for label, count in self.counts:
            each, more = divmod(count, self.shards)
            shares.append((label, each + ((number - turn) % self.shards < more)))
            turn += more
        return shares


def plan_from_job(job: Job, spec: GeneratorSpec) -> JobPlan:
    """Return the plan of ``job`` for a model with this spec.

    Raises:
        BadRequest: The job has too many shards, or its reserve runs past the last seed.
    """
    first, counts = job.samples.first, job.samples.counts(spec)
    samples = sum(count for _, count in counts)
    sample_bytes = sum(output.item.row_bytes(Format.RAW) for output in job.output.of_sample(spec))
    size = job.output.shard_size or max(1, min(_SHARD_SIZE, _SHARD_BYTES // sample_bytes))
    shards = math.ceil(samples / size)
    if shards > _MOST_SHARDS:
        raise BadRequest(f"{samples} samples in shards of {size} are over {_MOST_SHARDS} shards")
    reserve = math.ceil(job.samples.reserve * math.ceil(samples / shards))
    if (last := first + samples + shards * reserve - 1) > MAX_SEED:
        raise BadRequest(
            f"the job needs seeds to {last}, past {MAX_SEED}: its samples have those to "
            f"{first + samples - 1}, then each shard of {shards} has a reserve of {reserve}; "
            "start lower, or lower [samples] reserve"
        )
    return JobPlan(first, tuple(counts), shards, reserve)


def _in_turn(shares: Sequence[tuple[int | None, int]]) -> NDArray[np.int64]:
    """Return the labels of a shard: 0, 1, 2, 0, 1, 2, ... while there are any left of each."""
    labels = np.concatenate([np.full(share, label, np.int64) for label, share in shares])
    turns = np.concatenate([np.arange(share) for _, share in shares])
    return labels[np.argsort(turns, kind="stable")]
