"""What a synthesis job adds to the engine: ratios, measured in alternating pairs in one run.

Each pair draws raw images with the engine alone (every core, its best batch), then makes a job with
PNG level 1 in WebDataset shards, by ``--draw-with local`` and, on request, by a running server. The
rate of a job is that of its steady part: from the first shard of every worker to the last shard.
Two networks: a DCGAN of width 64 at 64x64 with random weights, and one ten times as heavy.

    python benchmarks/synthesis.py --pairs 7
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from pathlib import Path

from measuring import Row, Z, publish_network, served

from latentry.clients.server import Server
from latentry.contract.seeds import LatentDrawer
from latentry.serving.runtime.engines.engine_class import vector_level
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.synthesis.crews.processes import ProcessCrew
from latentry.synthesis.job import Job
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin, Progress, Settled, Work

_BATCHES = (2, 4, 8, 16, 32, 64)
_ENGINE_S, _JOB_S = 4.0, 8.0
_VERSIONS = ("latentry", "onnxruntime", "numpy", "Pillow")
NETWORKS = {"64x64": (64, 0.88), "10x heavier": (204, 0.95)}  # width, and what a job must reach


class EngineAlone:
    """The engine as a server has it: one thread for each core, at its best batch."""

    def __init__(self, model: Path) -> None:
        self._engine = OnnxRuntimeEngine(model)
        self._drawer = LatentDrawer(Z)
        self.best_batch = max(_BATCHES, key=lambda batch: self.rate(batch, 1.0))

    def rate(self, batch: int, seconds: float = _ENGINE_S) -> float:
        """Raw images a second."""
        self._draw(batch)
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            self._draw(batch)
            count += batch
        return count / elapsed

    def _draw(self, batch: int) -> None:
        self._engine.run({"z": self._drawer.draw(range(batch))}, ["image", "watch"])


class Timed:
    """A crew that notes when each shard was done."""

    def __init__(self, workers: ProcessCrew, count: int) -> None:
        self._workers = workers
        self._count = count
        self._done: list[tuple[float, int]] = []

    def __call__(self, work: Work, numbers: Iterable[int], progress: Progress) -> Iterator[Settled]:
        """Make shards as the workers do."""
        for settled in self._workers(work, numbers, progress):
            self._done.append((time.perf_counter(), len(settled.record.seeds)))
            yield settled

    def rate(self) -> float:
        """Images a second once every worker has made its first shard."""
        start = self._done[self._count - 1][0]
        rest = self._done[self._count :]
        return sum(count for _, count in rest) / (rest[-1][0] - start)


def job_rate(
    name: str, origin: Origin, images: int, shard_size: int, workers: ProcessCrew, count: int
) -> float:
    """Return the images a second of one job."""
    job = Job.model_validate(
        {
            "model": name,
            "samples": {"seeds": f"0-{images - 1}"},
            "output": {"shard_size": shard_size},
        }
    )
    timed = Timed(workers, count)
    with tempfile.TemporaryDirectory() as folder:
        totals = run_job(job, origin, folder, crew=timed)
    assert totals.samples == images
    return timed.rate()


def measure(pairs: int, repository: Path, *, server: bool) -> Iterator[Row]:
    """Yield a row for each network and source."""
    cores = len(os.sched_getaffinity(0))
    for network, (width, reach) in NETWORKS.items():
        name = f"bench{width}"
        entry = publish_network(repository, name, width)
        engine = EngineAlone(entry.build_folder / "generator.onnx")
        print(f"{network}: best at batch {engine.best_batch}", flush=True)
        rate = engine.rate(engine.best_batch)
        # Whole batches of 32, as nearly all are in shards of the usual size.
        shard = max(32, int(rate * _JOB_S / (8 * cores)) // 32 * 32)
        images = shard * 8 * cores
        rows = {"local": Row(f"{network}, --draw-with local", f">= {reach}", "x")}
        with ExitStack() as stack:
            origins = {"local": (Origin(repository), ProcessCrew(cores, pinned=True), cores)}
            if server:
                url, _ = stack.enter_context(served(repository, ["--models", name]))
                rows["server"] = Row(f"{network}, a running server", "-", "x")
                origins["server"] = (Origin(server=Server(url)), ProcessCrew(4, pinned=False), 4)
            for pair in range(pairs):
                for source, (origin, workers, count) in origins.items():
                    alone = engine.rate(engine.best_batch)
                    made = job_rate(name, origin, images, shard, workers, count)
                    rows[source].add(made / alone)
                    print(f"pair {pair + 1}: {source} {made:.0f} / {alone:.0f}", flush=True)
        yield from rows.values()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--server", action="store_true", help="also draw from a running server")
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.platform()}, {os.cpu_count()} cores, {vector_level()}")
    print(", ".join(f"{name} {version(name)}" for name in _VERSIONS))
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(arguments.pairs, Path(folder) / "repository", server=arguments.server))
    print("\n| | reach | median | range |\n|---|---|---|---|")
    for row in rows:
        low, high = min(row.values), max(row.values)
        middle = statistics.median(row.values)
        print(f"| {row.name} | {row.reach} | {middle:.2f}x | {low:.2f} - {high:.2f} |")


if __name__ == "__main__":
    main()
