import pytest
import torch
from sample_generators import Exported, Small
from torch import Tensor, nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.onnx_export import onnx_from_module
from latentry.export.preparation import prepare
from latentry.export.proofs.parity import prove


def test_a_generator_with_neither_comes_back_as_it_is(small: Exported) -> None:
    prepared = prepare(small.module, small.spec)
    assert prepared.module is small.module
    assert prepared.warnings == ()


def noisy(module: Small, z: Tensor) -> Tensor:
    x = module.draw(z)
    return torch.tanh(x + 0.1 * torch.randn_like(x) + torch.rand(z.shape[0], 1, 1, 6))


def test_noise_is_refused_in_one_message(small_spec: GeneratorSpec) -> None:
    message = (
        r"random numbers itself \(2 x: \[1, 4, 6\] in generator, \[1, 1, 6\] in generator\)"
        r".*--noise freeze"
    )
    with pytest.raises(ExportRefused, match=message) as caught:
        prepare(Small(noisy), small_spec)
    assert "\n" not in str(caught.value)


def test_frozen_noise_is_exported_and_proved(small_spec: GeneratorSpec) -> None:
    module = Small(noisy)
    prepared = prepare(module, small_spec, noise="freeze")
    (warning,) = prepared.warnings
    assert "drawn once" in warning
    files = onnx_from_module(prepared.module, small_spec)
    assert prove(prepared.module, small_spec, files, 4).levels <= 1


def casts(module: Small, z: Tensor) -> Tensor:
    x = module.draw(z).half() * 30
    x = x.to(torch.bfloat16) + torch.ones(1, dtype=torch.float16)
    return torch.tanh(x.to(dtype=torch.float16) / 30).float()


def test_half_precision_is_exported_as_float32_and_said(small_spec: GeneratorSpec) -> None:
    module = Small(casts)
    prepared = prepare(module, small_spec)
    (warning,) = prepared.warnings
    assert "computes in float16; float32 was exported, whose samples differ" in warning
    files = onnx_from_module(prepared.module, small_spec)
    parity = prove(prepared.module, prepared.spec, files, 4)
    assert max(parity.differences.values()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(
    small_spec: GeneratorSpec, dtype: torch.dtype
) -> None:
    module = Small(lambda module, z: module.draw(z)).to(dtype)
    prepared = prepare(module, small_spec)
    assert f"computes in {str(dtype).removeprefix('torch.')}" in prepared.warnings[0]
    assert prepared.module(torch.zeros(2, 8)).dtype == torch.float32
    assert module.linear.weight.dtype == dtype


def test_autocast_is_refused_with_what_to_do(small_spec: GeneratorSpec) -> None:
    def forward(module: Small, z: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module.draw(z).float()

    with pytest.raises(ExportRefused, match=r"bfloat16 by itself.*torch\.autocast.*take that out"):
        prepare(Small(forward), small_spec)


class Checking(Small):
    """Insists on its half precision, as StyleGAN's blocks do."""

    use_fp16 = True

    def forward(self, z: Tensor) -> Tensor:
        dtype = torch.float16 if self.use_fp16 else torch.float32
        x = self.draw(z).to(dtype)
        assert x.dtype == dtype
        return x.float()


def test_stylegans_switch_is_turned_off(small_spec: GeneratorSpec) -> None:
    module = Checking(lambda module, z: z)
    prepared = prepare(module, small_spec)
    assert "computes in float16" in prepared.warnings[0]
    assert module.use_fp16


def test_a_forward_that_insists_is_refused(small_spec: GeneratorSpec) -> None:
    def forward(module: Small, z: Tensor) -> Tensor:
        x = module.draw(z).half()
        assert x.dtype == torch.float16
        return x.float()

    with pytest.raises(ExportRefused, match=r"fails in float32: AssertionError(.|\n)*turn half"):
        prepare(Small(forward), small_spec)


def test_what_fails_is_left_to_the_export(small_spec: GeneratorSpec) -> None:
    module = nn.Linear(3, 3)
    assert prepare(module, small_spec).module is module
