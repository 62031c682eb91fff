import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.judging import Digits, Write, candidates_of, enlarged, load
from PIL import Image
from pydantic import ValidationError

from latentry.contract.errors import BadRequest
from latentry.synthesis.filters.network import NetworkOptions, load_network


def test_height_and_width_are_not_mixed_up(write: Write) -> None:
    images = np.random.RandomState(5).randint(0, 256, (3, 20, 30, 1)).astype(np.uint8)
    small = [Image.fromarray(i[..., 0]).resize((16, 4), Image.Resampling.BILINEAR) for i in images]
    for name, shape in (("low", ("N", 1, 4, 16)), ("low-last", ("N", 4, 16, 1))):
        network = load_network(NetworkOptions.model_validate({"file": write(name, shape)}))
        expected = network.run(np.stack([np.asarray(picture) for picture in small])[..., None])
        np.testing.assert_array_equal(network.run(images), expected)


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [
        ("zero_to_255", [0.0], [255.0]),
        ("minus_one_to_one", [-1.0], [2.0]),
        ("zero_to_one", [0.5], [0.25]),
    ],
)
def test_scales_means_and_deviations_are_those_that_are_named(
    digits: Digits, write: Write, scale: str, mean: list[float], std: Any
) -> None:
    images = digits[0][:5]
    ratio = {"zero_to_255": 1.0, "minus_one_to_one": 2 / 255, "zero_to_one": 1 / 255}[scale]
    offset = -1 if scale == "minus_one_to_one" else 0
    expected = ((images * ratio + offset) - mean[0]) / std[0]
    options = {"file": write("plain"), "scale": scale, "mean": mean, "std": std}
    network = load_network(NetworkOptions.model_validate(options))
    plain = load_network(
        NetworkOptions.model_validate({"file": write("plain"), "scale": "zero_to_255"})
    )
    # A linear network tells its input: what is left without an image is its bias.
    zero = plain.run(np.zeros_like(images))
    slope = plain.run(images) - zero
    if expected.min() == 0:
        np.testing.assert_allclose(network.run(images) - zero, slope / 255, atol=1e-4)
    else:
        start = network.run(np.zeros_like(images))
        np.testing.assert_allclose(network.run(images) - start, slope * ratio / std[0], atol=1e-4)


def test_features_are_the_same_to_the_bit_however_they_are_cut(networks: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.RandomState(1)
    arrays = {
        "k": random.randn(16, 3, 3, 3).astype(np.float32),
        "w": random.randn(16 * 36, 24).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 24])],
        [numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    (networks / "features.onnx").write_bytes(model.SerializeToString())
    options = NetworkOptions.model_validate({"file": networks / "features.onnx"})
    network = load_network(options)
    images = random.randint(0, 256, (75, 8, 8, 3)).astype(np.uint8)
    whole = network.run(images)
    assert whole.shape == (75, 24)
    for size in (1, 7, 32, 33):
        parts = [network.run(images[start : start + size]) for start in range(0, 75, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(load_network(options).run(images), whole)


@pytest.mark.parametrize(
    ("name", "make", "options", "words"),
    [
        (
            "two",
            {"inputs": ("image", "mask")},
            {},
            "it must take one batch of images, [N, C, H, W]",
        ),
        ("flat", {"shape": ("N", 64)}, {}, "it must take one batch of images, [N, C, H, W]"),
        ("frozen", {"shape": (1, 1, 8, 8)}, {}, "takes batches of 1 only; it must be free"),
        (
            "wide",
            {"shape": ("N", "C", "H", "W")},
            {"large": True},
            "takes no float32 [32, 1, 16, 16]: ",
        ),
        ("plain", {}, {"output": "scores"}, "has no output scores; it has ['logits']"),
        ("one", {"outputs": ("one",)}, {}, "a classifier gives a finite number for each class"),
        ("three", {}, {"mean": [0, 0, 0]}, "takes 1 channels; mean and std give 3 and 1 numbers"),
        (
            "sure",
            {"outputs": ("labels",)},
            {"min_probability": 0.5},
            "answers labels alone; for min_probability name its output of probabilities",
        ),
    ],
)
def test_a_network_that_is_none_of_ours_is_refused(
    digits: Digits,
    write: Write,
    name: str,
    make: dict[str, Any],
    options: dict[str, Any],
    words: str,
) -> None:
    file = write(name, **make)

    images = enlarged(digits[0][:3], 16) if options.pop("large", False) else digits[0][:3]

    def judge() -> None:
        load("classifier", file=file, **options).judge(candidates_of(images, digits[1][:3]))

    with pytest.raises(BadRequest, match=re.escape(words)) as refusal:
        judge()
    assert f"{name}.onnx" in str(refusal.value)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("not a network")
    with pytest.raises(BadRequest, match=r"ONNX Runtime cannot load .*net\.onnx: "):
        load("classifier", file=tmp_path / "net.onnx")
    with pytest.raises(ValidationError, match=r"gone\.onnx is no file; give the path of an ONNX"):
        load("classifier", file=tmp_path / "gone.onnx")


def test_a_network_that_went_meanwhile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.onnx"
    path.touch()
    options = NetworkOptions.model_validate({"file": path})
    path.unlink()
    with pytest.raises(BadRequest, match=r"gone\.onnx cannot be read: No such file or directory"):
        load_network(options)


def test_a_network_with_external_data_is_refused(tmp_path: Path) -> None:
    import onnx

    weights = onnx.numpy_helper.from_array(np.zeros((3, 4), np.float32), "weights")
    graph = onnx.helper.make_graph([], "g", [], [], [weights])
    path = tmp_path / "net.onnx"
    onnx.save(
        onnx.helper.make_model(graph),
        str(path),
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
    )
    with pytest.raises(BadRequest, match=r"keeps its weights in another file, net\.onnx\.data"):
        load_network(NetworkOptions(file=path))
