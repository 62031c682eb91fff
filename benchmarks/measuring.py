"""What the benchmarks share: their network, a real server, a row of a table."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import PictureOutput
from latentry.contract.spec import GeneratorSpec
from latentry.export.publish import Source, export_generator
from latentry.serving.entries.repository import Entry
from latentry.training.architectures import build

LATENTRY = Path(sys.executable).parent / "latentry"
Z = LatentInput(name="z", shape=(64,))


@dataclass
class Row:
    """One line of the table: a value for each pair, and the load generator's CPU in cores."""

    name: str
    reach: str
    unit: str
    values: list[float] = field(default_factory=list)
    load_cpu: list[float] = field(default_factory=list)

    def add(self, value: float, load_cpu: float | None = None) -> None:
        """Add what one pair gave."""
        self.values.append(value)
        if load_cpu is not None:
            self.load_cpu.append(load_cpu)

    def text(self) -> str:
        """The row in Markdown: median, range, and the load generator's share of one core."""
        middle, low, high = statistics.median(self.values), min(self.values), max(self.values)
        load = f"{statistics.median(self.load_cpu):.0%}" if self.load_cpu else "-"
        span = f"{low:.2f} - {high:.2f}"
        return f"| {self.name} | {self.reach} | {middle:.2f}{self.unit} | {span} | {load} |"


def publish_network(repository: Path, name: str, width: int) -> Entry:
    """Publish a DCGAN for RGB 64 x 64 with random weights; width 64 is 105 M multiply-adds."""
    torch.manual_seed(0)
    image = PictureOutput(name="image", height=64, width=64, channels=3)
    spec = GeneratorSpec(inputs=(Z,), outputs=(image,))
    module = build("dcgan", {"z_dim": 64, "width": width, "channels": 3}).eval()
    return export_generator(Source(name, spec, module, "dcgan", "0" * 64), repository)[0]


@contextmanager
def served(repository: Path, options: list[str]) -> Iterator[tuple[str, float]]:
    """Run ``latentry serve``; give its address and the seconds until it was ready."""
    command = ["serve", "--repository", str(repository), "--port", "0", "--metrics-port", "0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(LATENTRY), *command, "--json", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield json.loads(line)["url"], time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()
