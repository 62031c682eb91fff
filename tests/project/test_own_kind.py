"""A kind that nobody here knows, in one file of a package: all the way through."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import LATENTRY, RunningServer, run_server

pytestmark = [pytest.mark.server, pytest.mark.acceptance, pytest.mark.timeout(300)]

KIND = '''
"""Angles: a number of degrees, which wrap around."""

import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.classes import rows_of_scalars
from latentry.contract.kinds.kind import InputKind
from latentry.contract.values.arrays import numbers


class AngleInput(InputKind):
    kind: Literal["angle"] = "angle"

    @property
    def allowed(self) -> str:
        return "an angle from 0 up to 360 degrees"

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        return ~np.logical_and(values >= 0, values < 360)

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        return rows_of_scalars(self.name, numbers(self.name, value, self.allowed, most=most + 1))

    def value_from_text(self, text: str) -> Any:
        match = re.fullmatch("([0-9]+)deg", text)
        if not match:
            raise BadRequest(f"{self.name} holds {text!r}; it takes {self.allowed}, as 90deg")
        return float(match[1])

    def examples(self, count: int) -> NDArray[np.float32]:
        return np.linspace(0, 359, count, dtype=np.float32)[:, None]

    def stem(self, row: NDArray[Any]) -> str:
        return f"{row[0]:g}deg"

    def to_network(self, rows: Any) -> Any:
        return rows[:, 0] * (np.pi / 180)
'''
MODULE = """
import torch
from torch import Tensor, nn


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(5, 64)

    def forward(self, z: Tensor, angle: Tensor) -> Tensor:
        return torch.tanh(self.first(torch.cat([z, angle[:, None]], 1))).reshape(-1, 1, 8, 8)


def build() -> nn.Module:
    return Turning()
"""
SPEC = {
    "inputs": [
        {"name": "z", "kind": "latent", "shape": [4]},
        {"name": "angle", "kind": "angle"},
    ],
    "outputs": [{"name": "image", "kind": "picture", "height": 8, "width": 8, "channels": 1}],
}
JOB = """
model = "turning"
[samples]
seeds = "0-19"
[inputs]
angle = { uniform = [0, 359] }
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a package that brings the kind, a module and a spec."""
    folder = tmp_path_factory.mktemp("angles")
    (folder / "angles.py").write_text(KIND)
    (folder / "turning.py").write_text(MODULE)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "job.toml").write_text(JOB)
    facts = folder / "angles-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: angles\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[latentry.kinds]\nangle = angles:AngleInput\n")
    save = (
        "from safetensors.torch import save_file; import turning; "
        "save_file(turning.build().state_dict(), 'weights.safetensors')"
    )
    subprocess.run([sys.executable, "-c", save], cwd=folder, check=True)
    run(
        folder, "export", "turning:build", "--weights", "weights.safetensors", "--spec", "spec.json"
    )
    return folder


@pytest.fixture(scope="module")
def turning(project: Path) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(project))
        with run_server(project / "model_repository", "--instances", "1") as server:
            yield server


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command where the package is found; return what it said."""
    done = subprocess.run(
        [str(LATENTRY), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def drawn(project: Path, turning: RunningServer, *options: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        run(project, "generate", "turning", "--url", turning.url, "--json", *options)
    )
    return answer


def test_it_goes_from_the_command_line_through_a_server(
    project: Path, turning: RunningServer
) -> None:
    found = drawn(project, turning, "--seeds", "0-3", "--set", "angle=90deg", "--out", "drawn")
    assert found["inputs"] == {"angle": [90.0] * 4}
    assert [Path(name).name for name in found["files"]] == [
        f"seed000000000{seed}-90deg.png" for seed in range(4)
    ]
    run(project, "stream", "turning", "--url", turning.url, "--seeds", "0-3",
        "--set", "angle=90deg", "--out", "streamed")  # fmt: skip
    for name in found["files"]:
        streamed = project / "streamed" / Path(name).name
        assert streamed.read_bytes() == (project / name).read_bytes()


def test_it_refuses_in_its_own_words(project: Path, turning: RunningServer) -> None:
    said = run(project, "generate", "turning", "--url", turning.url, "--set", "angle=left", code=2)
    assert "it takes an angle from 0 up to 360 degrees, as 90deg" in said
    said = run(project, "generate", "turning", "--url", turning.url, "--set", "angle=360deg",
               code=1)  # fmt: skip
    assert "angle in row 0 is 360.0; it takes an angle from 0 up to 360 degrees" in said


def test_jobs_draw_it_and_are_verified(project: Path, turning: RunningServer) -> None:
    run(project, "synthesize", "job.toml", "--out", "out", "--draw-with", "server",
        "--url", turning.url, "--workers", "1")  # fmt: skip
    run(project, "synthesize", "verify", "out", "--draw-with", "local",
        "--repository", "model_repository", "--samples", "20")  # fmt: skip


def test_it_is_profiled(project: Path, turning: RunningServer) -> None:
    found = json.loads(
        run(
            project,
            "profile",
            "turning",
            "--url",
            turning.url,
            "--concurrency",
            "1",
            "--rates",
            "50",
            "--batches",
            "1",
            "--window-s",
            "0.2",
            "--most-s",
            "2",
            "--quick",
            "--out",
            "profile",
            "--json",
        )  # fmt: skip
    )
    assert found["points"]
