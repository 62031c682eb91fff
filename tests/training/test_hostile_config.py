"""Configs whose sizes are each allowed and make no generator together."""

import json
from pathlib import Path

import pytest

from latentry.contract.errors import CheckpointError
from latentry.training.checkpoint import load_checkpoint

DIGITS = Path(__file__).resolve().parents[2] / "training" / "checkpoints" / "digits"


@pytest.mark.parametrize("sizes", [{"width": 65_536, "resolution": 65_536}])
def test_tensors_beyond_64_bits_are_refused(tmp_path: Path, sizes: dict[str, int]) -> None:
    described = json.loads((DIGITS / "generator.json").read_text())
    described["config"].update(sizes)
    (tmp_path / "generator.json").write_text(json.dumps(described))
    (tmp_path / "weights.safetensors").symlink_to(DIGITS / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"generator\.json describes tensors .* too large"):
        load_checkpoint(tmp_path)
