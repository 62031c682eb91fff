import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from sample_generators import Exported, ExportSmall, Small
from specs import classes, image, make_spec
from specs import z as latent
from torch import Tensor, nn

from latentry.contract.errors import BadRequest, ExportRefused
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.export.graphs.onnx_export import onnx_from_module
from latentry.export.proofs.parity import TOLERANCE, prove
from latentry.serving.entries.manifests import Parity
from latentry.serving.runtime.engines.engine_class import engine_class

Weights = NDArray[Any]


def tampered(data: bytes, edit: Callable[[Weights], Weights]) -> dict[str, bytes]:
    """Return files whose largest weights went through ``edit``."""
    model = onnx.load_model_from_string(data)
    tensor = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    changed = edit(onnx.numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    return {"generator.onnx": model.SerializeToString()}


@pytest.mark.parametrize("kind", ["plain", "conditional", "mapped"])
def test_honest_exports_are_proved(kind: str, request: pytest.FixtureRequest) -> None:
    module, spec, files = request.getfixturevalue(kind)
    before = copy.deepcopy(module.state_dict())
    parity = prove(module, spec, files, 7)
    assert parity.batch_sizes == (1, 3, 7)
    assert parity.seeds == 8
    assert parity.engine_class == engine_class()
    assert parity.differences.keys() == ({"w", "image.sample"} if spec.stages else {"image.sample"})
    assert 0 < max(parity.differences.values()) < TOLERANCE
    assert parity.levels <= 1
    assert parity.level_fraction < 0.001
    assert 0 < parity.peak <= 1
    assert parity.warnings == ()
    assert Parity.model_validate_json(parity.model_dump_json()) == parity
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_the_callers_mode_is_kept(plain: Exported) -> None:
    module, spec, files = plain
    prove(module, spec, files, 1)
    assert module.training


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, (1,)), (2, (1, 2)), (3, (1, 3)), (32, (1, 3, 7, 32))]
)
def test_batch_sizes_go_up_to_the_maximum(
    small: Exported, most: int, sizes: tuple[int, ...]
) -> None:
    parity = prove(small.module, small.spec, small.files, most)
    assert parity.batch_sizes == sizes
    assert parity.seeds == max(8, most)


def test_a_maximum_below_one_is_refused(small: Exported) -> None:
    with pytest.raises(BadRequest, match="max_batch_size is 0; it must be at least 1"):
        prove(small.module, small.spec, small.files, 0)


def test_changed_weights_are_refused_with_the_element(small: Exported) -> None:
    def nudge(weights: Weights) -> Weights:
        weights.flat[5] += 0.01
        return weights

    files = tampered(small.files["generator.onnx"], nudge)
    message = (
        r"image\.sample\[\d, 0, \d, \d\] is \S+ in ONNX Runtime and \S+ in torch "
        r"at batch 1: \S+ apart, the tolerance is 0\.0001\. Are these the weights"
    )
    with pytest.raises(ExportRefused, match=message):
        prove(small.module, small.spec, files, 4)


def test_a_mapping_that_differs_is_named_as_w(mapped: Exported) -> None:
    module, spec, files = mapped
    other = copy.deepcopy(module)
    other.get_parameter("layers.0.weight").data[0, 0] += 0.1
    with pytest.raises(ExportRefused, match=r"w\[\d, \d, \d\] is \S+ in ONNX Runtime"):
        prove(other, spec, files, 3)


def test_an_image_that_is_not_the_samples_is_refused(small: Exported) -> None:
    def darken(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Add" and "watch" not in node.output:
                shifted = onnx.numpy_helper.from_array(np.array(120, np.float32), "shifted")
                model.graph.initializer.append(shifted)
                node.input[1] = "shifted"

    model = onnx.load_model_from_string(small.files["generator.onnx"])
    darken(model)
    message = r"image\[.*\] is \d+ in ONNX Runtime and \d+ in torch.* 8 levels apart"
    with pytest.raises(ExportRefused, match=message):
        prove(small.module, small.spec, {"generator.onnx": model.SerializeToString()}, 2)


def test_a_watch_that_does_not_watch_is_refused(small: Exported) -> None:
    model = onnx.load_model_from_string(small.files["generator.onnx"])
    for node in model.graph.node:
        if node.op_type == "ReduceSum":
            node.op_type = "ReduceMin"
    with pytest.raises(ExportRefused, match=r"watch\[\d\] is .*NaN could go unseen"):
        prove(small.module, small.spec, {"generator.onnx": model.SerializeToString()}, 2)


def test_nan_names_its_seed(export_small: ExportSmall) -> None:
    first = LatentDrawer(LatentInput(name="z", shape=(8,))).draw(range(8))[:, 0]
    low, second = np.sort(first)[:2]
    module, spec, files = export_small(
        lambda module, z: module.draw(z) * (z[:, :1, None, None] - float(low + second) / 2).sqrt()
    )
    message = (
        r"image\.sample\[.*\] is nan in ONNX Runtime; not finite for row "
        rf"{first.argmin()} \(those of the same seeds, where a seed draws\)\. Look"
    )
    with pytest.raises(ExportRefused, match=message):
        prove(module, spec, files, 4)


def test_nan_in_torch_alone_is_refused(small: Exported) -> None:
    module = copy.deepcopy(small.module)
    module.get_parameter("linear.weight").data[7, 0] = float("nan")
    with pytest.raises(ExportRefused, match=r"image\.sample\[0, 0, 1, 1\] is nan in torch"):
        prove(module, small.spec, small.files, 2)


def test_a_constant_image_is_refused(export_small: ExportSmall) -> None:
    module, spec, files = export_small(lambda module, z: module.draw(z) + 300)
    with pytest.raises(ExportRefused, match=r"image of row 0 is constant: every pixel is \[255\]"):
        prove(module, spec, files, 2)


def test_z_without_effect_is_refused(export_small: ExportSmall) -> None:
    module, spec, files = export_small(lambda module, z: module.draw(z * 0 + 1))
    with pytest.raises(ExportRefused, match=r"8 different z all give the same: it has no effect"):
        prove(module, spec, files, 2)


class ByClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 24)

    def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
        sample: Tensor = self.embedding(class_label).reshape(-1, 1, 4, 6).tanh()
        return sample + 0 * z[:, :1, None, None]


def test_classes_do_not_hide_that_z_has_no_effect() -> None:
    spec = make_spec([latent(8), classes("a", "b")], [image(4, 6, 1)])
    module = ByClass()
    with pytest.raises(ExportRefused, match="different z all give the same: it has no effect"):
        prove(module, spec, onnx_from_module(module, spec), 2)


def test_a_mean_over_the_batch_breaks_sample_identity(export_small: ExportSmall) -> None:
    module, spec, files = export_small(
        lambda module, z: module.draw(z - z.mean(0, keepdim=True) * 0.1)
    )
    message = r"in a batch of 3 and \S+ alone: \S+ apart.*same image in every batch; rows reach"
    with pytest.raises(ExportRefused, match=message):
        prove(module, spec, files, 5)


def test_a_difference_of_rounding_has_other_causes(export_small: ExportSmall) -> None:
    module, spec, files = export_small(
        lambda module, z: module.draw(z - z.mean(0, keepdim=True) * 1e-6)
    )
    message = r"in a batch of 3 and \S+ alone: \S+e-0\d apart.*that little is rounding.*PixelN"
    with pytest.raises(ExportRefused, match=message):
        prove(module, spec, files, 5)


def test_a_sample_that_depends_on_its_place_is_refused(export_small: ExportSmall) -> None:
    # Rows 0 to 2 are as they are alone, so only rows further down show the fault.
    def forward(module: Small, z: Tensor) -> Tensor:
        place = torch.cumsum(torch.ones_like(z[:, :1]), 0)
        return module.draw(z + torch.relu(place - 3))

    module, spec, files = export_small(forward)
    with pytest.raises(
        ExportRefused, match=r"sample\[[3-7], .*\] is \S+ in a batch of 7 and \S+ alone"
    ):
        prove(module, spec, files, 8)


def test_equal_rows_that_differ_are_refused(export_small: ExportSmall) -> None:
    # Neighbours are told apart by what they hold, so only equal rows show the fault.
    def forward(module: Small, z: Tensor) -> Tensor:
        twins = (z[:, None] == z[None]).all(2).sum(1, keepdim=True) - 1
        place = torch.cumsum(torch.ones_like(z[:, :1]), 0)
        return module.draw(z + twins * place)

    module, spec, files = export_small(forward)
    message = r"image\.sample\[\d, .*\] is .* in row 0 of a batch of 3 equal rows.*its place in"
    with pytest.raises(ExportRefused, match=message):
        prove(module, spec, files, 3)


def test_a_wide_range_is_a_warning(export_small: ExportSmall) -> None:
    module, spec, files = export_small(lambda module, z: module.draw(z) * 4)
    parity = prove(module, spec, files, 2)
    assert len(parity.warnings) == 1
    assert "8 of 8 image go beyond [-1.5, 1.5] (-3." in parity.warnings[0]


def test_a_range_from_zero_is_a_warning(export_small: ExportSmall) -> None:
    module, spec, files = export_small(lambda module, z: module.draw(z) * 0.5 + 0.5)
    parity = prove(module, spec, files, 2)
    assert "no image has a value below 0" in parity.warnings[0]
