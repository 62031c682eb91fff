import numpy as np
import onnx
import pytest
import specs
import torch
from sample_generators import Exported, Small
from torch import Tensor, nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.layer_noise import (
    NoiseCall,
    NoiseFromInputs,
    find_noise,
    freeze_noise,
)
from latentry.export.graphs.onnx_export import OPSET, onnx_from_module
from latentry.export.graphs.quiet import captured_noise
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine


def every_way(module: Small, z: Tensor) -> Tensor:
    """Draw noise in every way that people write it."""
    x = module.draw(z)
    x = x + 0.1 * torch.randn_like(x)
    x = x + 0.1 * torch.randn([x.shape[0], 1, 4, 6], device=x.device)
    x = x + x.new_empty(x.shape[0], 1, 4, 6).normal_(std=0.1)
    x = x + torch.empty_like(x).uniform_(-0.1, 0.1)
    x = x + torch.normal(0.5, 0.1, (1, 1, 4, 6)) + 0.1 * torch.rand(4, 6)
    return x + torch.normal(torch.zeros_like(x), 0.1)


KINDS = [
    ((1, 4, 6), True, False),
    ((1, 4, 6), True, False),
    ((1, 4, 6), True, False),
    ((1, 4, 6), True, True),
    ((1, 4, 6), True, False),
    ((4, 6), False, True),
    ((1, 4, 6), True, False),
]


def test_every_call_is_found_with_what_it_draws(small_spec: GeneratorSpec) -> None:
    calls = find_noise(Small(every_way), small_spec)
    assert [(call.shape, call.has_rows, call.uniform) for call in calls] == KINDS
    assert [call.name for call in calls] == [f"noise_{index}" for index in range(len(KINDS))]
    assert {call.network for call in calls} == {"generator"}


def test_a_forward_without_noise_has_none(small: Exported) -> None:
    assert find_noise(small.module, small.spec) == ()


def test_frozen_noise_is_the_same_for_every_row_and_call(small_spec: GeneratorSpec) -> None:
    module = Small(every_way)
    frozen = freeze_noise(module, small_spec, find_noise(module, small_spec))
    z = torch.randn(1, 8).repeat(3, 1)
    drawn = frozen(z)
    assert torch.equal(drawn, frozen(z))
    assert torch.equal(drawn[0], drawn[2])
    apart = (drawn - module.draw(z)).detach()
    assert 0.1 < float(apart.std()) < 0.4
    assert 0.3 < float(apart.mean()) < 0.8


def test_noise_follows_from_its_name_and_the_seed() -> None:
    call = NoiseCall("noise_3", "synthesis", (1, 16, 16), True, False)
    assert torch.equal(call.draw(5), call.draw(5))
    assert not torch.equal(call.draw(5), call.draw(6))
    assert not torch.equal(
        call.draw(5), NoiseCall("noise_4", *list(vars(call).values())[1:]).draw(5)
    )
    assert abs(float(call.draw(0).std()) - 1) < 0.2


class Styled(nn.Module):
    """Two stages, the second with noise."""

    def mapping(self, z: Tensor) -> Tensor:
        return z[:, None].repeat(1, 2, 1)

    def synthesis(self, w: Tensor) -> Tensor:
        x = w.sum(1).reshape(-1, 1, 2, 4).repeat(1, 1, 2, 2)[..., :6]
        return torch.tanh(x + torch.randn(x.shape))


STYLED_SPEC = specs.make_spec(
    [specs.z(8), specs.w(2, 8), specs.psi()],
    [specs.image(4, 6, 1)],
    specs.stages_of_stylegan([0.0] * 8, mapping_takes=["z"]),
)


def test_networks_keep_their_names_and_their_own_noise() -> None:
    spec, module = STYLED_SPEC, Styled()
    (call,) = find_noise(module, spec)
    assert (call.network, call.shape) == ("synthesis", (1, 4, 6))
    frozen = freeze_noise(module, spec, [call])
    files = onnx_from_module(frozen, spec)
    w = np.random.RandomState(0).randn(3, 2, 8).astype(np.float32)
    engine = OnnxRuntimeEngine(files["synthesis.onnx"])
    drawn = engine.run({"w_truncated": w}, ["image.sample"])["image.sample"]
    with torch.no_grad():
        expected = frozen.get_submodule("synthesis")(torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_noise_from_inputs_is_an_input_of_the_graph(small_spec: GeneratorSpec) -> None:
    def forward(module: Small, z: Tensor) -> Tensor:
        x = module.draw(z)
        return x + torch.randn_like(x) + torch.randn(1, 1, 4, 6)

    module = Small(forward).eval()
    calls = find_noise(module, small_spec)
    stage = NoiseFromInputs(module, "generator", calls)
    generator = torch.Generator().manual_seed(0)
    shapes = [(8,), *(call.shape for call in calls)]
    inputs = tuple(torch.randn(3, *shape, generator=generator) for shape in shapes)
    with captured_noise():
        program = torch.onnx.export(
            stage,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=["z", *(call.name for call in calls)],
            output_names=["sample"],
            dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in inputs),),
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    assert [value.name for value in model.graph.input] == ["z", "noise_0", "noise_1"]
    feed = {
        value.name: tensor[:2].numpy()
        for value, tensor in zip(model.graph.input, inputs, strict=True)
    }
    drawn = OnnxRuntimeEngine(model.SerializeToString()).run(feed, ["sample"])["sample"]
    z, first, second = (tensor[:2] for tensor in inputs)
    expected = (module.draw(z) + first + second).detach().numpy()
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda z: torch.randn(z.shape[0] * 24).reshape(-1, 1, 4, 6), r"shape \[48\] for 2 rows"),
        (lambda z: torch.randn(4, 6, z.shape[0]).movedim(2, 0)[:, None], "first axis must be the"),
        (
            lambda z: torch.stack([torch.randn(1, 4, 6) for _ in range(len(z))]),
            "2 times for 2 rows and 3 times for 3",
        ),
    ],
)
def test_noise_that_has_no_rows_is_refused(
    small_spec: GeneratorSpec, draw: object, message: str
) -> None:
    module = Small(lambda module, z: module.draw(z) + draw(z))  # type: ignore[operator]
    with pytest.raises(ExportRefused, match=message):
        find_noise(module, small_spec)


def test_noise_for_all_rows_at_once_cannot_be_an_input(small_spec: GeneratorSpec) -> None:
    module = Small(lambda module, z: module.draw(z) + torch.randn(4, 6))
    with pytest.raises(ExportRefused, match=r"noise_0 of the generator is drawn as \[4, 6\]"):
        NoiseFromInputs(module, "generator", find_noise(module, small_spec))
