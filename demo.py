"""``make demo``: export the committed checkpoints, serve them, draw, stream; pictures in demo/."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from latentry.clients import Client
from latentry.contract.images import Uint8, grid_from_images, pil_from_uint8

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "demo"
REPOSITORY = OUT / "model_repository"
LATENTRY = Path(sys.executable).parent / "latentry"

console = Console()


def export(checkpoint: str) -> None:
    """Prove and publish a committed checkpoint."""
    folder = ROOT / "training" / "checkpoints" / checkpoint
    command = [str(LATENTRY), "export", str(folder), "--repository", str(REPOSITORY)]
    subprocess.run(command, check=True)


@contextmanager
def serve() -> Iterator[str]:
    """Run ``latentry serve`` on free ports; give its address."""
    command = [str(LATENTRY), "serve", "--repository", str(REPOSITORY)]
    command += ["--port", "0", "--metrics-port", "0", "--drain-s", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise SystemExit("latentry serve did not start; its message stands above")
            yield json.loads(line)["url"]
        finally:
            process.terminate()


def draw(client: Client) -> None:
    """Ask for ten of every digit, and stream textures."""
    start = time.perf_counter()
    digits = client.generate("digits", seeds=range(100), class_label=[i % 10 for i in range(100)])
    console.print(f"{len(digits)} digits over gRPC in {time.perf_counter() - start:.2f} s")
    digits.grid(columns=10).save(OUT / "digits.png")

    again = client.generate("digits", seeds=[42], class_label=2)
    if not np.array_equal(again.images[0], digits.images[42]):
        raise SystemExit("seed 42 drew two different images; this must never happen")
    console.print("seed 42 asked for alone draws the very image it drew among the hundred")

    start = time.perf_counter()
    chunks: list[Uint8] = []
    for chunk in client.stream("textures", seeds=range(64)):
        if not chunks:
            console.print(f"first {len(chunk)} textures {time.perf_counter() - start:.3f} s after")
        chunks.append(chunk.images)
    pil_from_uint8(grid_from_images(np.concatenate(chunks))).save(OUT / "textures.png")


def main() -> None:
    """Run it all; a second run publishes nothing new and draws the same pictures."""
    OUT.mkdir(exist_ok=True)
    for checkpoint in ("digits", "textures"):
        export(checkpoint)
    with serve() as url, Client(url) as client:
        info = client.info("digits")
        console.print(f"{info.name} {info.model_digest[:12]} on {info.engine_class} at {url}")
        draw(client)
    for name in ("digits.png", "textures.png"):
        console.print(f"[green]wrote[/] {OUT / name}")


if __name__ == "__main__":
    main()
