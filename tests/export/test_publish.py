import json
import os
from pathlib import Path

import pytest
import sample_generators
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentry.contract.errors import CheckpointError, ExportRefused, SpecError
from latentry.contract.spec import GeneratorSpec
from latentry.export.publish import Source, export_generator, source_from_target
from latentry.serving.entries.examples import PERF_INPUT_FILE
from latentry.serving.entries.repository import list_strays
from latentry.serving.entries.verification import verify_entry

SPEC = {
    "inputs": [{"name": "z", "kind": "latent", "shape": [4]}],
    "outputs": [{"name": "image", "kind": "picture", "height": 8, "width": 8, "channels": 1}],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    weights, spec = tmp_path / "w.safetensors", tmp_path / "spec.json"
    save_file(sample_generators.build_breaking().state_dict(), weights)
    spec.write_text(json.dumps(SPEC))
    return weights, spec


def test_a_users_own_module_is_published(tmp_path: Path, files: tuple[Path, Path]) -> None:
    source = source_from_target("sample_generators:build_breaking", *files)
    assert source.name == "sample_generators"
    steps: list[str] = []
    repository = tmp_path / "repository"
    entry, is_new = export_generator(source, repository, max_batch_size=8, on_step=steps.append)
    assert is_new
    assert len(steps) == 4
    verify_entry(entry)
    assert list_strays(repository) == []
    rows = json.loads((entry.folder / PERF_INPUT_FILE).read_text())["data"]
    assert [row["seed"] for row in rows[:3]] == [[0], [1], [2]]
    again, is_new = export_generator(source, repository, max_batch_size=8)
    assert (again.version, is_new) == (1, False)


class Noisy(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(
            torch.randn(z.shape[0], 1, 8, 8) + z.reshape(-1, 1, 2, 2).repeat(1, 1, 4, 4)
        )


def test_a_refused_export_leaves_nothing_behind(tmp_path: Path) -> None:
    source = Source("noisy", GeneratorSpec.model_validate(SPEC), Noisy(), "noisy", "0" * 64)
    with pytest.raises(ExportRefused, match="random"):
        export_generator(source, tmp_path / "repository", max_batch_size=8)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_spec_or_missing_weights_are_refused(files: tuple[Path, Path]) -> None:
    weights, spec = files
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        source_from_target("sample_generators:build_breaking", weights, spec.with_name("none.json"))
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        source_from_target(
            "sample_generators:build_breaking", weights.with_name("nothing.safetensors"), spec
        )
    for odd in ("fifo", "/dev/zero"):
        path = spec.parent / odd
        if odd == "fifo":
            os.mkfifo(path)
        with pytest.raises(SpecError, match="cannot be read: it is no regular file"):
            source_from_target("sample_generators:build_breaking", weights, path)
        with pytest.raises(CheckpointError, match="cannot be read: it is no regular file"):
            source_from_target("sample_generators:build_breaking", path, spec)
    spec.write_text("[" * 100_000)
    with pytest.raises(SpecError, match=r"spec\.json is no generator spec"):
        source_from_target("sample_generators:build_breaking", weights, spec)
    spec.write_text('{"inputs": []}')
    with pytest.raises(SpecError, match=r"spec\.json is no generator spec"):
        source_from_target("sample_generators:build_breaking", weights, spec)
