"""Small generators and their exports, shared because each export takes seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import specs
import torch
from sample_generators import Exported, ExportSmall, Small
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.onnx_export import onnx_from_module

Z_DIM = 8
HEIGHT, WIDTH = 48, 80


def make_spec(
    height: int = HEIGHT,
    width: int = WIDTH,
    channels: int = 3,
    names: Sequence[str] = (),
    w_shape: Sequence[int] | None = None,
) -> GeneratorSpec:
    inputs = [specs.z(Z_DIM)]
    if names:
        inputs.append(specs.classes(*names))
    stages: list[specs.Part] = []
    if w_shape is not None:
        inputs += [specs.w(*w_shape), specs.psi()]
        stages = specs.stages_of_stylegan(w_avg=[0.25] * w_shape[1])
    return specs.make_spec(inputs, [specs.image(height, width, channels)], stages)


class Upsampler(nn.Sequential):
    """[N, 16, 6, 10] to [N, 3, 48, 80], with one foldable BatchNorm of every kind."""

    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(16, 8, 4, 2, 1, groups=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            spectral_norm(nn.Conv2d(8, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Tanh(),
        )


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(Z_DIM, 16 * 6 * 10)
        self.norm = nn.BatchNorm1d(16 * 6 * 10)
        self.up = Upsampler()

    def forward(self, z: Tensor) -> Tensor:
        sample: Tensor = self.up(self.norm(self.first(z)).reshape(-1, 16, 6, 10))
        return sample


class Conditional(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, Z_DIM)
        self.plain = Plain()

    def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
        sample: Tensor = self.plain(z * self.embedding(class_label))
        return sample


class Mapped(nn.Module):
    """A mapping submodule and a synthesis method, since both ways are allowed."""

    num_ws, w_dim = 2, 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, Z_DIM)
        self.layers = nn.Sequential(nn.Linear(Z_DIM, 16), nn.LeakyReLU(0.2), nn.Linear(16, 8))
        self.plain = Plain()
        self.style = nn.Linear(self.w_dim, 3)

    def mapping(self, z: Tensor, class_label: Tensor) -> Tensor:
        w: Tensor = self.layers(z + self.embedding(class_label))
        return w[:, None].repeat(1, self.num_ws, 1)

    def synthesis(self, w: Tensor) -> Tensor:
        return torch.tanh(self.plain(w[:, 0]) + self.style(w[:, 1])[:, :, None, None])


def trained(module: nn.Module) -> nn.Module:
    """Return the module as after training: parameters and running statistics of all kinds."""
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (child.weight.data, child.get_buffer("running_var")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (child.bias.data, child.get_buffer("running_mean")):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return module


def exported(module: nn.Module, spec: GeneratorSpec) -> Exported:
    return Exported(module, spec, onnx_from_module(module, spec))


@pytest.fixture(scope="session")
def plain() -> Exported:
    """An unconditional generator, left in training mode as a trainer would: module, spec, files."""
    torch.manual_seed(1)
    module, spec = trained(Plain()).train(), make_spec()
    return exported(module, spec)


@pytest.fixture(scope="session")
def conditional() -> Exported:
    torch.manual_seed(2)
    module, spec = trained(Conditional(12)), make_spec(names=[str(i) for i in range(12)])
    return exported(module, spec)


@pytest.fixture(scope="session")
def mapped() -> Exported:
    torch.manual_seed(3)
    module = trained(Mapped(2))
    spec = make_spec(names=["cat", "dog"], w_shape=[Mapped.num_ws, Mapped.w_dim])
    return exported(module, spec)


@pytest.fixture(scope="session")
def small_spec() -> GeneratorSpec:
    return make_spec(height=4, width=6, channels=1)


@pytest.fixture(scope="session")
def export_small(small_spec: GeneratorSpec) -> ExportSmall:
    """Return what exports a Small around ``function(module, z)``."""

    def export(function: Callable[[Small, Tensor], Any]) -> Exported:
        return exported(Small(function), small_spec)

    return export


@pytest.fixture(scope="session")
def small(export_small: ExportSmall) -> Exported:
    return export_small(lambda module, z: module.draw(z))
