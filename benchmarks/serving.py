"""What Triton and Python add to the engine: ratios, measured in alternating pairs in one run.

Every row compares the served generator with ONNX Runtime in this process at its best batch, on one
network: a DCGAN of width 64 at 64x64 with random weights (105 M multiply-adds). Each pair measures
one and then the other, so what else the machine does falls on both. Medians and ranges are
printed, and what the load generator itself used of the CPU.

    python benchmarks/serving.py --pairs 7
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, as Latentry's own engine does

import onnxruntime
from measuring import LATENTRY, Row, Z, publish_network, served

from latentry.clients import Client
from latentry.contract.seeds import LatentDrawer
from latentry.profiling.perf_analyzer.program import PerfAnalyzer, require_perf_analyzer
from latentry.serving.entries.repository import Entry
from latentry.serving.runtime.engines.engine_class import vector_level

MODEL = "bench"
_VERSIONS = ("latentry", "onnxruntime", "numpy", "tritonclient", "nvidia-pytriton")
_BATCHES = (1, 4, 8, 16, 32)
_WINDOW_S = 3.0


class InProcess:
    """ONNX Runtime in this process, as anybody would use it: all cores, spinning on."""

    def __init__(self, model: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self._drawer = LatentDrawer(Z)
        self.best_batch = max(_BATCHES, key=lambda batch: self.throughput(batch, 1.0))

    def draw(self, batch: int) -> None:
        """Draw z and the images for ``batch`` seeds."""
        self._session.run(["image"], {"z": self._drawer.draw(range(batch))})

    def throughput(self, batch: int, seconds: float = _WINDOW_S) -> float:
        """Images a second."""
        self.draw(batch)
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            self.draw(batch)
            count += batch
        return count / elapsed

    def latency_ms(self, batch: int, repeats: int, pause_s: float = 0.0) -> float:
        """Median time of one call."""
        return _median_ms(lambda: self.draw(batch), repeats, pause_s)


def _median_ms(call: Callable[[], object], repeats: int, pause_s: float = 0.0) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        time.sleep(pause_s)
    return statistics.median(times) * 1e3


def perf_analyzer_throughput(
    tool: PerfAnalyzer, url: str, entry: Entry, *, callers: int, batch: int
) -> tuple[float, float]:
    """Return images a second and perf_analyzer's own CPU (in cores) for closed-loop callers.

    Three windows, whatever they show: stability is judged over the pairs, not inside one. (With
    ``--request-count``, 2.51 rounds the time to whole seconds.)
    """
    before, start = _children_cpu(), time.perf_counter()
    report = tool.run(
        *("-m", MODEL, "-u", url, "-i", "grpc", "-b", str(batch)),
        *("--concurrency-range", str(callers), "-p", "1500", "-s", "999"),
        *("--input-data", str(entry.folder / "perf_input.json")),
    )
    cpu = (_children_cpu() - before) / (time.perf_counter() - start)
    line = next(line for line in report.splitlines() if "Throughput:" in line)
    return float(line.split()[1]), cpu


def stream_throughput(client: Client, samples: int) -> tuple[float, float]:
    """Return images a second of one stream and this process's CPU (in cores)."""
    before, start = time.process_time(), time.perf_counter()
    count = sum(len(chunk) for chunk in client.stream(MODEL, seeds=range(samples)))
    elapsed = time.perf_counter() - start
    assert count == samples
    return count / elapsed, (time.process_time() - before) / elapsed


def first_chunk_ms(client: Client, repeats: int) -> float:
    """Return the median time from asking for a stream to its first chunk of 8."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        stream = client.stream(MODEL, seeds=range(1024))
        chunk = next(stream)
        times.append(time.perf_counter() - start)
        stream.close()
        assert len(chunk) == 8
        # What was under way when the stream was closed ends first; then the caches hold batches
        # of 8 again, as they do when the same is measured in process.
        client.generate(MODEL, seeds=range(64))
        for _ in range(4):
            client.generate(MODEL, seeds=range(8))
    return statistics.median(times) * 1e3


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(pairs: int, repository: Path, options: list[str]) -> list[Row]:
    """Measure every row, each pair on a server of its own."""
    tool = require_perf_analyzer()
    entry = publish_network(repository, MODEL, 64)
    engine = InProcess(entry.build_folder / "generator.onnx")
    print(f"in process best at batch {engine.best_batch}")
    rows = {
        "callers": Row("32 callers of batch 1", ">= 0.90", "x"),
        "batches": Row("one caller, batches of 32", ">= 0.95", "x"),
        "stream": Row("a stream of 1,024", ">= 0.95", "x"),
        "first": Row("first chunk of 8, over in process", "<= +4", " ms"),
        "idle": Row("one image, idle, p50, over in process", "<= +2", " ms"),
        "pause": Row("the same, 10 ms between images", "-", " ms"),
        "ready": Row("ready after start", "< 10", " s"),
        "help": Row("`latentry --help`", "< 0.5", " s"),
    }
    for pair in range(pairs):
        rows["help"].add(help_s())
        with served(repository, options) as (url, ready_s), Client(url) as client:
            rows["ready"].add(ready_s)
            measure_pair(rows, engine, tool, url, entry, client)
        last = ", ".join(f"{name} {row.values[-1]:.2f}" for name, row in rows.items())
        print(f"pair {pair + 1}: {last}", flush=True)
    return list(rows.values())


def measure_pair(
    rows: dict[str, Row],
    engine: InProcess,
    tool: PerfAnalyzer,
    url: str,
    entry: Entry,
    client: Client,
) -> None:
    """Measure in process and served, one after the other, for every row."""
    for name, callers, batch in (("callers", 32, 1), ("batches", 1, 32)):
        alone = engine.throughput(engine.best_batch)
        rate, cpu = perf_analyzer_throughput(tool, url, entry, callers=callers, batch=batch)
        rows[name].add(rate / alone, cpu)
    alone = engine.throughput(engine.best_batch)
    rate, cpu = stream_throughput(client, 1024)
    rows["stream"].add(rate / alone, cpu)
    rows["first"].add(first_chunk_ms(client, 15) - engine.latency_ms(8, 50))
    for name, pause_s in (("idle", 0.0), ("pause", 0.01)):
        alone = engine.latency_ms(1, 200, pause_s)
        one = _median_ms(lambda: client.generate(MODEL, seeds=0), 200, pause_s)
        rows[name].add(one - alone)


def help_s() -> float:
    """Return the seconds that ``latentry --help`` takes."""
    start = time.perf_counter()
    subprocess.run([str(LATENTRY), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("serve_options", nargs="*", help="after --, for latentry serve")
    arguments = parser.parse_args()
    print(f"{date.today()}, {platform.platform()}, {os.cpu_count()} cores, {vector_level()}")
    print(", ".join(f"{name} {version(name)}" for name in _VERSIONS))
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.pairs, Path(folder) / "repository", arguments.serve_options)
    print("\n| | reach | median | range | load generator, cores |\n|---|---|---|---|---|")
    print("\n".join(row.text() for row in rows))


if __name__ == "__main__":
    main()
