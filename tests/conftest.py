"""What the tests share: one repository of real exports, one real server on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, run_server

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model repository with the two committed models and the tests' own generators."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    import sample_generators

    from latentry.export.publish import Source, export_generator, source_from_checkpoint
    from latentry.serving.spec import GeneratorSpec

    folder = tmp_path_factory.mktemp("serving") / "model_repository"
    for checkpoint in sorted(CHECKPOINTS.iterdir()):
        export_generator(source_from_checkpoint(checkpoint), folder)
    for name, spec in SPECS.items():
        module = getattr(sample_generators, f"build_{name}")().eval()
        source = Source(name, GeneratorSpec.model_validate(spec), module, name, "0" * 64)
        most = 32 if name == "large" else 16
        export_generator(source, folder, max_batch_size=most)
    return folder


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[RunningServer]:
    """Return a real server on the shared repository; no test may break it."""
    with run_server(repository, "--instances", "1") as running:
        yield running


@pytest.fixture(scope="session")
def server(triton: RunningServer) -> RunningServer:
    """Return the same; the clients' tests have a quick double under this name."""
    return triton
