import json
import os
from pathlib import Path

import numpy as np
import pytest
import sample_generators
import specs
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from latentry.clients import Client
from latentry.contract.errors import CheckpointError, ExportRefused, SpecError
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.export.publish import Source, export_generator, source_from_target
from latentry.serving.entries.examples import PERF_INPUT_FILE
from latentry.serving.entries.repository import list_strays
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.local import LocalTransport

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


class Placed(nn.Module):
    """Changes its sample by the place in the batch, as little as operators that round do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 64)

    def forward(self, z: Tensor) -> Tensor:
        place = torch.cumsum(torch.ones_like(z[:, :1]), 0) - 1
        return torch.tanh(self.first(z) + 1e-7 * place).reshape(-1, 1, 8, 8)


def test_rows_that_only_round_are_served_alone(tmp_path: Path) -> None:
    source = Source("placed", GeneratorSpec.model_validate(SPEC), Placed(), "placed", "0" * 64)
    entry, _ = export_generator(source, tmp_path / "repository", max_batch_size=8)
    assert entry.build.rows == "single"
    assert "each row is computed alone" in entry.build.parity.warnings[-1]
    transport = LocalTransport(tmp_path / "repository")

    def draw(seeds: list[int]) -> NDArray[np.float32]:
        inputs = {
            "seed": np.array(seeds, np.int64)[:, None],
            "format": np.full((len(seeds), 1), b"float", np.object_),
        }
        outputs = transport.infer("placed", inputs).result().outputs
        sample: NDArray[np.float32] = outputs["image.sample"]
        return sample

    together = draw(list(range(8)))
    for seed in range(8):
        np.testing.assert_array_equal(draw([seed])[0], together[seed])
    transport.close()


def test_noise_of_the_forward_is_frozen_where_that_is_asked(tmp_path: Path) -> None:
    source = Source("noisy", GeneratorSpec.model_validate(SPEC), Noisy(), "noisy", "0" * 64)
    entry, _ = export_generator(source, tmp_path / "repository", max_batch_size=2, noise="freeze")
    verify_entry(entry)
    assert "was drawn once" in entry.build.parity.warnings[0]


def test_noise_of_the_forward_follows_from_the_seed_where_that_is_asked(tmp_path: Path) -> None:
    source = Source("noisy", GeneratorSpec.model_validate(SPEC), Noisy(), "noisy", "0" * 64)
    entry, _ = export_generator(source, tmp_path / "repository", max_batch_size=4, noise="seed")
    verify_entry(entry)
    assert [item.name for item in entry.spec.inputs] == ["z", "noise_0"]
    with Client(transport=LocalTransport(tmp_path / "repository")) as client:
        together = client.generate("noisy", seeds=[3, 4, 3], format="float").samples
        alone = client.generate("noisy", seeds=[4], format="float").samples
        given = client.generate(
            "noisy", seeds=[4], noise_0=np.zeros((1, 8, 8), np.float32), format="float"
        ).samples
    assert together is not None
    assert alone is not None
    assert given is not None
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_array_equal(together[1], alone[0])
    (noise,) = LatentDrawer(LatentInput(name="noise_0", shape=(1, 8, 8))).draw([4])
    z = np.random.RandomState(4).randn(4).astype(np.float32).reshape(1, 2, 2)
    np.testing.assert_allclose(alone[0], np.tanh(noise + np.tile(z, (1, 4, 4))), atol=1e-5)
    np.testing.assert_allclose(given, np.tanh(np.tile(z, (1, 1, 4, 4))), atol=1e-5)


STYLED = specs.make_spec(
    [specs.z(4), specs.w(2, 4), specs.psi()],
    [specs.image(4, 4, 1)],
    [
        {"network": "mapping", "takes": ["z"], "gives": ["w"]},
        {"operation": "truncate", "takes": ["w", "truncation_psi"], "gives": ["w_truncated"]},
        {"network": "synthesis", "takes": ["w_truncated"], "gives": ["image"]},
    ],
)


class Averaged(nn.Module):
    """Keeps the average of w, as training leaves it in StyleGAN's mapping networks."""

    def __init__(self, *w_avg: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 16)
        if w_avg:
            self.register_buffer("w_avg", torch.tensor(w_avg))

    def mapping(self, z: Tensor) -> Tensor:
        return z[:, None].repeat(1, 2, 1)

    def synthesis(self, w: Tensor) -> Tensor:
        return torch.tanh(self.layer(w.flatten(1))).reshape(-1, 1, 4, 4)


def test_truncation_takes_the_modules_own_average(tmp_path: Path) -> None:
    module, w_avg = Averaged(0.5, -1.0, 0.25, 0.1), [0.5, -1.0, 0.25, np.float32(0.1)]
    source = Source("styled", STYLED, module, "styled", "0" * 64)
    entry, _ = export_generator(source, tmp_path / "repository", max_batch_size=4)
    (stage,) = [item for item in entry.spec.stages if item.takes[0] == "w"]
    assert list(stage.w_avg) == w_avg
    with Client(transport=LocalTransport(tmp_path / "repository")) as client:
        drawn = client.generate("styled", seeds=[1], truncation_psi=0.0, format="float").samples
    assert drawn is not None
    with torch.no_grad():
        expected = module.synthesis(torch.tensor([w_avg, w_avg])[None])
    np.testing.assert_allclose(drawn, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Averaged(), "truncate has no w_avg in the spec, and Averaged keeps none"),
        (Averaged(0.0, 0.0), "w_avg of Averaged does not fit .* 2 numbers, w_dim is 4"),
    ],
)
def test_truncation_without_an_average_is_never_published(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    source = Source("styled", STYLED, module, "styled", "0" * 64)
    with pytest.raises(ExportRefused, match=message):
        export_generator(source, tmp_path / "repository", max_batch_size=4)
    assert not (tmp_path / "repository").exists()
