"""Who makes a job's shards: what every crew does, and the simplest one."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from latentry.synthesis.shard_making import Progress, Settled, ShardMaker, Work


class Crew(Protocol):
    """Makes the shards of a job, here or elsewhere."""

    def __call__(self, work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        """Settle the shards ``numbers``, in any order; yield what they are as they are done.

        Raises:
            LatentryError: A shard could not be made; nobody goes on with others.
        """
        ...


def make_here(work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
    """Settle shards in this process; a :class:`Crew`."""
    with ShardMaker(work) as maker:
        for number in numbers:
            yield maker.settle(number, progress)
