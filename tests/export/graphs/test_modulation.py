"""Modulated convolutions as people write them, exported with a free batch and proved equal."""

import math
from collections.abc import Callable

import onnx
import pytest
import specs
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentry.contract.errors import ExportRefused
from latentry.export.graphs.graph_checks import check_graphs
from latentry.export.graphs.modulation import separate_modulation
from latentry.export.graphs.onnx_export import onnx_from_module
from latentry.export.graphs.quiet import captured_noise
from latentry.export.graphs.row_graph import row_graph, spread_over_rows
from latentry.export.proofs.parity import prove

Z_DIM, WIDE, SIZE = 8, 6, 4

Convolve = Callable[["Modulated", Tensor, Tensor, Tensor], Tensor]


class Modulated(nn.Module):
    """One modulated convolution from [N, 6, 4, 4] to [N, 5, ...], and what makes a picture of it.

    ``convolve`` gets the module, x, a style [N, 6] and z.
    """

    def __init__(self, convolve: Convolve) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(Z_DIM, WIDE * SIZE * SIZE)
        self.affine = nn.Linear(Z_DIM, WIDE)
        self.weight = nn.Parameter(torch.randn(5, WIDE, 3, 3))
        self.bias = nn.Parameter(torch.randn(5))
        self.last = nn.Conv2d(5, 1, 1)
        self.convolve = convolve

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, WIDE, SIZE, SIZE)
        sample: Tensor = self.last(self.convolve(self, x, 1 + self.affine(z), z))
        return torch.tanh(sample)


def per_sample(module: Modulated, style: Tensor) -> Tensor:
    """Return weights [N, 5, 6, 3, 3], modulated and demodulated, by the words of the paper."""
    weight = module.weight[None] * style[:, None, :, None, None]
    return weight * torch.rsqrt(weight.square().sum([2, 3, 4], keepdim=True) + 1e-8)


def fused(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    weight = 0.3 * module.weight * style.view(batch, 1, channels, 1, 1)
    demodulation = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
    weight = (weight * demodulation.view(batch, 5, 1, 1, 1)).view(batch * 5, channels, 3, 3)
    x = x.view(1, batch * channels, height, width)
    return functional.conv2d(x, weight, padding=1, groups=batch).view(batch, 5, height, width)


def fused_by_integers(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    batch = int(x.shape[0])
    weight = per_sample(module, style).reshape(-1, WIDE, 3, 3).flip([2, 3])
    x = functional.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding="same", groups=batch)
    return x.reshape(batch, -1, *x.shape[2:]) + module.bias[None, :, None, None]


def fused_upwards(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    """Twice as large, with a blur of all samples' channels at once, one group each."""
    batch = int(x.shape[0])
    weight = per_sample(module, style).transpose(1, 2).reshape(batch * WIDE, 5, 3, 3)
    x = functional.conv_transpose2d(x.reshape(1, -1, SIZE, SIZE), weight, stride=2, groups=batch)
    blur = torch.ones(1, 1, 2, 2).repeat([batch * 5, 1, 1, 1]) / 4
    x = functional.conv2d(x, blur, groups=batch * 5)
    return x.reshape(batch, 5, 2 * SIZE, 2 * SIZE)


def row_by_row(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    weight = per_sample(module, style) / 2
    rows = [
        functional.conv2d(x[i : i + 1], weight[i], module.bias, padding=1) for i in range(len(x))
    ]
    return torch.cat(rows)


def equal_channels(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    """Neither demodulated nor with a style for each channel: one factor for each sample."""
    batch = x.shape[0]
    weight = module.weight[None] / style[:, 0].reshape(-1, 1, 1, 1, 1)
    weight = weight.expand(-1, 5, WIDE, 3, 3).reshape(batch * 5, WIDE, 3, 3)
    x = functional.conv2d(x.reshape(1, -1, SIZE, SIZE), weight, padding=1, groups=batch)
    return x.reshape(batch, 5, SIZE, SIZE)


def one_depth(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    """Depthwise: every channel has its own filter, which only its output's factor may scale."""
    batch, weight = int(x.shape[0]), module.weight[:, :1]
    weight = weight[None] * style[:, :5, None, None, None]
    x = x[:, :5].reshape(1, -1, SIZE, SIZE)
    x = functional.conv2d(x, weight.reshape(-1, 1, 3, 3), padding=1, groups=batch * 5)
    return x.reshape(batch, 5, SIZE, SIZE)


def own_biases(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    """Constant weights, and biases for each sample."""
    batch, weight = x.shape[0], module.weight.repeat(x.shape[0], 1, 1, 1)
    bias = style[:, :5].reshape(-1)
    x = x.reshape(1, -1, SIZE, SIZE)
    x = functional.conv2d(x, weight, bias, padding=1, groups=batch)
    return x.reshape(batch, 5, SIZE, SIZE)


WRITINGS = [
    own_biases,
    fused,
    fused_by_integers,
    fused_upwards,
    row_by_row,
    equal_channels,
    one_depth,
]


@pytest.mark.parametrize("convolve", WRITINGS)
def test_every_writing_becomes_constant_weights_for_any_batch(convolve: Convolve) -> None:
    module = Modulated(convolve).eval().requires_grad_(False)
    z = torch.randn(5, Z_DIM, generator=torch.Generator().manual_seed(1))
    with captured_noise():
        graph = row_graph(module, (z[:1],))
    assert separate_modulation(graph) == 1
    assert separate_modulation(graph) == 0
    spread_over_rows(graph)
    for rows in (z[:1], z):
        torch.testing.assert_close(graph(rows), module(rows), rtol=1e-5, atol=1e-5)


class Chained(Modulated):
    """Every way of writing it one after the other, as no network has them."""

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, WIDE, SIZE, SIZE)
        for convolve in WRITINGS:
            y = convolve(self, x, 1 + self.affine(z), z)[:, :, :SIZE, :SIZE]
            x = torch.cat([torch.tanh(y), x[:, :1]], 1)
        sample: Tensor = self.last(x[:, :5])
        return torch.tanh(sample)


def test_they_are_exported_with_a_free_batch_and_proved() -> None:
    spec = specs.make_spec([specs.z(Z_DIM)], [specs.image(SIZE, SIZE, 1)])
    module = Chained(fused)
    files = onnx_from_module(module, spec)
    check_graphs(spec, files)
    assert prove(module, spec, files, 8).batch_sizes == (1, 3, 7, 8)
    model = onnx.load_model_from_string(files["generator.onnx"])
    constants = {tensor.name for tensor in model.graph.initializer}
    found = [node for node in model.graph.node if "Conv" in node.op_type]
    assert len(found) == len(WRITINGS) + 2
    assert all(node.input[1] in constants for node in found)
    # Demodulation needs no weights for each sample either.
    for value in onnx.shape_inference.infer_shapes(model).graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert len(sizes) < 5 or math.prod(sizes[1:]) <= 5 * WIDE, value.name


def kernels_of_their_own(module: Modulated, x: Tensor, style: Tensor, z: Tensor) -> Tensor:
    weight = module.weight[None] + style[:, None, :, None, None]
    weight = weight.reshape(-1, WIDE, 3, 3)
    x = functional.conv2d(x.reshape(1, -1, SIZE, SIZE), weight, padding=1, groups=x.shape[0])
    return x.reshape(-1, 5, SIZE, SIZE)


class Holder(nn.Module):
    """Has the convolution in a submodule, as networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Modulated(kernels_of_their_own)])

    def forward(self, z: Tensor) -> Tensor:
        sample: Tensor = self.blocks[0](z)
        return sample


def test_weights_that_are_no_such_product_are_refused_with_the_module() -> None:
    with captured_noise():
        graph = row_graph(Holder().eval(), (torch.zeros(1, Z_DIM),))
    message = r"a convolution in blocks\.0 has weights of its own for each sample.*unfold"
    with pytest.raises(ExportRefused, match=message):
        separate_modulation(graph)


class Conditional(nn.Module):
    """With a class and a number beside z, and features beside the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.modulated = Modulated(fused)
        self.embedding = nn.Embedding(3, Z_DIM)

    def forward(self, z: Tensor, label: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        sample = self.modulated(z + self.embedding(label)) * strength[:, None, None, None]
        return sample, sample.mean((2, 3))


def test_other_inputs_and_outputs_are_spread_over_rows_likewise() -> None:
    strength = {"name": "strength", "kind": "number", "minimum": 0.5, "maximum": 1, "default": 1}
    spec = specs.make_spec(
        [specs.z(Z_DIM), specs.classes("a", "b", "c"), strength],
        [specs.image(SIZE, SIZE, 1), {"name": "features", "kind": "vector", "size": 1}],
    )
    module = Conditional()
    files = onnx_from_module(module, spec)
    check_graphs(spec, files)
    assert set(prove(module, spec, files, 8).differences) == {"image.sample", "features"}
