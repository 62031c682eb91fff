"""Kinds of others come by entry points of installed packages."""

import subprocess
import sys
from pathlib import Path

import pytest

from latentry.contract.kinds.registry import input_from_any, output_from_any

PACKAGE = """
from typing import Literal
import numpy as np
from latentry.contract.kinds.kind import InputKind, OutputKind, TensorType

class Angle(InputKind):
    kind: Literal["angle"] = "angle"
    turns: int = 1

    @property
    def allowed(self):
        return "degrees"

class Sound(OutputKind):
    kind: Literal["sound"] = "sound"

    def tensors(self, image_format):
        return {self.name: TensorType(np.float32, (8,))}
"""
ENTRY_POINTS = "[latentry.kinds]\nangle = circles:Angle\nsound = circles:Sound\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with an installed package that has two kinds."""
    (tmp_path / "circles.py").write_text(PACKAGE)
    info = tmp_path / "circles-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: circles\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def run_with(site: Path, code: str) -> str:
    """Return what ``code`` prints in a process that has the package."""
    lines = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SPEC = """
from latentry.contract.spec import spec_from_json
text = '''{"inputs": [{"name": "tilt", "kind": "angle", "turns": 2}],
           "outputs": [{"name": "hum", "kind": "sound"}]}'''
spec = spec_from_json(text, "spec")
assert spec_from_json(spec.model_dump_json(), "spec") == spec
print(spec.inputs[0].turns, spec.outputs[0].raw.row_shape)
"""


def test_a_kind_of_an_installed_package_is_taken(site: Path) -> None:
    assert run_with(site, SPEC) == "2 (8,)"


def test_a_kind_that_is_unknown_is_told_with_those_of_others(site: Path) -> None:
    code = """
from latentry.contract.kinds.registry import input_from_any, output_from_any
for parse in (input_from_any, output_from_any):
    try:
        parse({"name": "x", "kind": "smell"})
    except ValueError as error:
        print(error)
"""
    inputs, outputs = run_with(site, code).splitlines()
    assert inputs.endswith("picture, mask, label_map, angle")
    assert outputs.endswith("vector, tensor, sound")


def test_our_own_kinds_load_no_package(site: Path) -> None:
    (site / "circles.py").write_text("raise RuntimeError('loaded')")
    code = """
from latentry.contract.kinds.registry import input_from_any
print(input_from_any({"name": "z", "kind": "latent", "shape": [4]}).kind)
"""
    assert run_with(site, code) == "latent"


def test_an_input_is_no_output_and_the_other_way_round() -> None:
    vector = {"name": "v", "kind": "vector", "size": 2}
    kinds: set[type] = {type(input_from_any(vector)), type(output_from_any(vector))}
    assert len(kinds) == 2
    with pytest.raises(ValueError, match="kind 'latent' is unknown; use one of picture, mask"):
        output_from_any({"name": "z", "kind": "latent", "shape": [4]})
    with pytest.raises(ValueError, match="kind 'tensor' is unknown; use one of latent, class"):
        input_from_any({"name": "t", "kind": "tensor", "shape": [4]})
