"""What the tests share: one repository of real exports, one real server on it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LATENTRY = Path(sys.executable).parent / "latentry"
CHECKPOINTS = ROOT / "training" / "checkpoints"

SPECS: dict[str, dict[str, Any]] = {
    "wide": {
        "inputs": [{"role": "z", "shape": [16]}],
        "image": {"height": 48, "width": 80, "channels": 3},
    },
    "mapped": {
        "inputs": [
            {"role": "z", "shape": [12]},
            {"role": "class_label", "classes": ["cat", "dog", "emu", "fox"]},
            {"role": "w", "shape": [3, 20], "w_avg": [0.01 * i for i in range(20)]},
            {"role": "truncation_psi"},
        ],
        "image": {"height": 24, "width": 24, "channels": 1},
    },
    "large": {
        "inputs": [{"role": "z", "shape": [8]}],
        "image": {"height": 256, "width": 256, "channels": 3},
    },
    "breaking": {
        "inputs": [{"role": "z", "shape": [4]}],
        "image": {"height": 8, "width": 8, "channels": 1},
    },
}


@dataclass
class RunningServer:
    """A ``latentry serve`` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    metrics_url: str

    def triton_pid(self) -> int:
        """Return the pid of its tritonserver."""
        import psutil

        return int(psutil.Process(self.process.pid).children()[0].pid)

    def stub_pids(self) -> list[int]:
        """Return the pids of the processes that run the models."""
        import psutil

        return [child.pid for child in psutil.Process(self.triton_pid()).children(recursive=True)]


Serve = Callable[..., AbstractContextManager[RunningServer]]


@contextmanager
def run_server(repository: Path, *options: str) -> Iterator[RunningServer]:
    """Serve ``repository`` on free ports until the block ends."""
    command = [str(LATENTRY), "serve", "--repository", str(repository), "--json"]
    command += ["--port", "0", "--metrics-port", "0", "--drain-s", "3", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "latentry serve ended before it was ready"
            ready = json.loads(line)
            yield RunningServer(process, ready["url"], ready["metrics_url"])
        finally:
            process.terminate()
            process.wait(timeout=20)


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Return a context manager that serves a repository in a process of its own."""
    return run_server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model repository with the two committed models and the tests' own generators."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    import sample_generators

    from latentry.export.publish import Source, export_generator, source_from_checkpoint
    from latentry.serving.spec import GeneratorSpec

    folder = tmp_path_factory.mktemp("serving") / "model_repository"
    for name in ("digits", "textures"):
        export_generator(source_from_checkpoint(CHECKPOINTS / name), folder)
    for name, spec in SPECS.items():
        module = getattr(sample_generators, f"build_{name}")().eval()
        source = Source(name, GeneratorSpec.model_validate(spec), module, name, "0" * 64)
        most = 32 if name == "large" else 16
        export_generator(source, folder, max_batch_size=most)
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[RunningServer]:
    """Return a real server on the shared repository; no test may break it."""
    with run_server(repository, "--instances", "1") as running:
        yield running
