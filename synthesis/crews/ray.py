"""A job's shards as Ray tasks: one machine without set-up, or a cluster.

Ray does nothing here but run shards somewhere. It may run one twice or again after a node was lost:
a shard's bytes are the same each time and appear whole. The nodes need the model repository and the
output at the same place, a shared folder or an object store.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import ray

from latentry.contract.errors import LatentryError, ServerGone
from latentry.synthesis.shard_making import Progress, Settled, ShardMaker, Work

# Lost nodes are Ray's to deal with; this often, before the job gives up.
_MOST_RETRIES = 20
_CONNECT_S = 5.0

_MAKERS: dict[tuple[str, ...], ShardMaker] = {}


class RayCrew:
    """Makes shards as Ray tasks of one core each; a ``Crew``."""

    def __init__(self, address: str | None, count: int | None) -> None:
        """Plan for a cluster.

        Args:
            address: The cluster's, as ``ray.init`` takes it; None starts Ray on this machine.
            count: Shards that are made at a time; None for one on each core of the cluster.
        """
        self._address = address
        self._count = count

    def __call__(self, work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        """Settle the shards ``numbers``; yield what they are as they are done.

        Raises:
            ServerGone: There is no cluster at the address, or it lost too many nodes.
            LatentryError: What a task raised.
        """
        self._connect()
        try:
            yield from self._make(work, iter(numbers), progress)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        # What Ray prints of itself is not what this command's users came for, nor is telling its
        # makers of them, which it does unless it is told not to.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address is None:
            options |= {"include_dashboard": False, "address": "local", "num_cpus": self._count}
        else:
            options["address"] = self._address
            self._check_address(self._address)
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise ServerGone(
                f"no Ray cluster at {self._address}: {error}; start one with `ray start --head`, "
                "or leave --address out"
            ) from error

    def _check_address(self, address: str) -> None:
        """Refuse an address where nobody listens; Ray itself asks it for minutes."""
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdecimal():
            return  # "auto" and the like are Ray's to explain
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except OSError as error:
            raise ServerGone(
                f"no Ray cluster at {address} ({error.strerror or error}); start one with "
                "`ray start --head`, or leave --address out"
            ) from error

    def _make(self, work: Work, numbers: Iterator[int], progress: Progress) -> Iterator[Settled]:
        make = ray.remote(num_cpus=1, max_retries=_MOST_RETRIES)(_make_shard)
        shared = ray.put(work)
        running: set[Any] = set()
        while True:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            # One more for each core waits, so that none is idle between two shards.
            most = self._count or 2 * int(resources.get("CPU", 1))
            for number in islice(numbers, max(0, most - len(running))):
                running.add(make.remote(shared, number))
            if not running:
                return
            done, rest = ray.wait(list(running), num_returns=1)
            running = set(rest)
            for task in done:
                settled = self._result(task)
                if settled.is_new:
                    progress(len(settled.record.seeds))
                yield settled

    def _result(self, task: Any) -> Settled:
        try:
            settled: Settled = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LatentryError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError as error:
            raise ServerGone(
                f"Ray gave a shard up: {error}; run the same command again, it goes on from here"
            ) from error
        return settled


def _make_shard(work: Work, number: int) -> Settled:
    """Run in a Ray worker, which keeps the engine for its next shard."""
    key = (work.out, str(work.origin), work.record.model_dump_json())
    if key not in _MAKERS:
        _MAKERS[key] = ShardMaker(work)
    return _MAKERS[key].settle(number, lambda _: None)
