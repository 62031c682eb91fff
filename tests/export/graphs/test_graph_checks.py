from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, helper
from sample_generators import Exported, ExportSmall, Small
from torch import Tensor

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.graph_checks import check_graphs

Edit = Callable[[ModelProto], None]


def respecced(spec: GeneratorSpec, **image: int) -> GeneratorSpec:
    content = spec.model_dump(mode="json")
    content["outputs"][0] |= image
    return GeneratorSpec.model_validate(content)


def edited(data: bytes, edit: Edit) -> dict[str, bytes]:
    model = onnx.load_model_from_string(data)
    edit(model)
    return {"generator.onnx": model.SerializeToString()}


@pytest.mark.parametrize("kind", ["plain", "conditional", "mapped"])
def test_honest_graphs_pass(kind: str, request: pytest.FixtureRequest) -> None:
    _, spec, files = request.getfixturevalue(kind)
    check_graphs(spec, files)


@pytest.mark.parametrize(
    ("noise", "operator"),
    [
        (lambda x: torch.randn(1, 1, 4, 6), "RandomNormal"),
        (lambda x: torch.rand_like(x), "RandomUniformLike"),
        (lambda x: torch.bernoulli(torch.full_like(x, 0.5)), "Bernoulli"),
        (lambda x: torch.multinomial(torch.ones(4), 6, True).float(), "Multinomial"),
    ],
)
def test_noise_in_the_forward_is_refused(
    export_small: ExportSmall, noise: Callable[[Tensor], Tensor], operator: str
) -> None:
    _, spec, files = export_small(lambda module, z: module.draw(z) + noise(module.draw(z)))
    with pytest.raises(
        ExportRefused, match=rf"{operator}\w* \(.+\) draws random.*an input or a con"
    ):
        check_graphs(spec, files)


def test_dropout_that_eval_does_not_turn_off_is_refused(export_small: ExportSmall) -> None:
    def forward(module: Small, z: Tensor) -> Tensor:
        return F.dropout(module.draw(z), 0.5, training=True)

    _, spec, files = export_small(forward)
    with pytest.raises(ExportRefused, match=r"Dropout \(.*\) drops at random.*training=self"):
        check_graphs(spec, files)


def test_a_loop_over_rows_freezes_the_batch_and_is_named(export_small: ExportSmall) -> None:
    _, spec, files = export_small(
        lambda module, z: torch.stack([module.draw(z)[row] for row in range(len(z))])
    )
    with pytest.raises(
        ExportRefused, match=r"z, image, image\.sample, watch can only be .* 3: .*len\(x\)"
    ):
        check_graphs(spec, files)


# torch's exporter takes a batch that cannot be free for one of the size that it was shown.
@pytest.mark.parametrize("channels", [1, -1])
def test_a_view_with_a_fixed_batch_is_refused_as_frozen(
    export_small: ExportSmall, channels: int
) -> None:
    _, spec, files = export_small(
        lambda module, z: module.linear(z).reshape(3, channels, 4, 6).tanh()
    )
    message = r"image, image\.sample, watch can only be .* 3: .*a fixed first size"
    with pytest.raises(ExportRefused, match=message):
        check_graphs(spec, files)


def test_height_and_width_swapped_gives_both(plain: Exported) -> None:
    _, spec, files = plain
    message = r"image\.sample has rows of shape \[3, 48, 80\]; the spec says \[3, 80, 48\]; correct"
    with pytest.raises(ExportRefused, match=message):
        check_graphs(respecced(spec, height=80, width=48), files)


def test_every_finding_is_told_at_once(plain: Exported) -> None:
    _, spec, files = plain
    with pytest.raises(
        ExportRefused, match=r"output image has rows.*\n.*output image\.sample has rows"
    ):
        check_graphs(respecced(spec, height=80, width=48), files)


def test_a_missing_file_names_what_is_there(mapped: Exported) -> None:
    _, spec, files = mapped
    with pytest.raises(ExportRefused, match=r"needs synthesis\.onnx; what is there: mapping\.onnx"):
        check_graphs(spec, {"mapping.onnx": files["mapping.onnx"]})


def rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = "picture"


def retype_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


def raise_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 20


def add_custom_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Blur", ["z"], ["y"], "blur", domain="com.example"))


def add_training_norm(model: ModelProto) -> None:
    node = helper.make_node("BatchNormalization", ["z"] * 5, ["y", "m", "v"], "norm")
    node.attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node.append(node)


def add_random_branch(model: ModelProto) -> None:
    noise = helper.make_node("RandomNormal", [], ["n"], "hidden", shape=[1])
    body = helper.make_graph([noise], "body", [], [])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    model.graph.node.append(branch)


def add_function(model: ModelProto) -> None:
    function = helper.make_function("local", "Twice", ["x"], ["y"], [], [])
    model.functions.append(function)


def move_weights_out(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def add_constant_outside(model: ModelProto) -> None:
    tensor = TensorProto(name="far", data_location=TensorProto.EXTERNAL)
    model.graph.node.append(helper.make_node("Constant", [], ["y"], value=tensor))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            rename_output,
            r"outputs are picture, image\.sample, watch; the spec asks for image, image\.sample, w",
        ),
        (retype_output, r"output image is FLOAT; it must be UINT8"),
        (raise_opset, r"operator sets are \{'': 20\}; it must have 18"),
        (add_custom_node, r"Blur \(blur\) is of the domain 'com\.example'"),
        (add_training_norm, r"BatchNormalization \(norm\) takes its statistics from the batch"),
        (add_random_branch, r"RandomNormal \(hidden\) draws random numbers"),
        (add_function, r"local function local::Twice"),
        (move_weights_out, r"weights .* lie in another file"),
        (add_constant_outside, r"weights far lie in another file"),
    ],
)
def test_foreign_graphs_are_refused(small: Exported, edit: Edit, message: str) -> None:
    with pytest.raises(ExportRefused, match=message):
        check_graphs(small.spec, edited(small.files["generator.onnx"], edit))


@pytest.mark.parametrize("switch", [None, False])
def test_dropout_in_evaluation_mode_passes(small: Exported, switch: bool | None) -> None:
    def add_dropout(model: ModelProto) -> None:
        inputs = ["z", ""] if switch is None else ["z", "", "off"]
        model.graph.node.append(helper.make_node("Dropout", inputs, ["y"], "drop"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(False), "off"))

    check_graphs(small.spec, edited(small.files["generator.onnx"], add_dropout))
