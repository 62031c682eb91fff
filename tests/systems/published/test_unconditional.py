"""Published generators of noise alone, each by what its row of docs/systems.md is about."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from published.catalogue import build_published, by_torch

from latentry.clients import Client
from latentry.serving.entries.repository import newest_entries

pytestmark = [pytest.mark.server, pytest.mark.acceptance]


def parity_of(repository: Path, name: str) -> float:
    """Return how far ONNX Runtime was from PyTorch, over batches of 1, 3, 7 and 8."""
    (entry,) = newest_entries(repository, (name,))
    assert entry.build.parity.batch_sizes == (1, 3, 7, 8)
    return max(entry.build.parity.differences.values())


def graph_of(repository: Path, name: str, network: str = "generator") -> onnx.ModelProto:
    (path,) = (repository / name).glob(f"1/builds/*/{network}.onnx")
    return onnx.load(path)


def convolutions_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions of a graph, of which every one has constant weights."""
    found = [node for node in model.graph.node if node.op_type in {"Conv", "ConvTranspose"}]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in found)
    return found


@pytest.mark.system("GAN")
def test_a_perceptron_draws_what_torch_draws(client: Client, published_repository: Path) -> None:
    assert parity_of(published_repository, "perceptron") <= 1e-5
    rows = np.random.RandomState(1).randn(13, 10).astype(np.float32)
    served = client.generate("perceptron", z=rows, format="float")
    np.testing.assert_allclose(
        served["image.sample"], by_torch("perceptron", {"z": rows}), atol=1e-5
    )


@pytest.mark.system("DCGAN")
def test_arithmetic_of_a_caller_on_z_is_that_of_torch(client: Client) -> None:
    seeds = np.arange(9).reshape(3, 3)  # three samples of each of three kinds, as in the paper
    latents = [[np.random.RandomState(seed).randn(12) for seed in kind] for kind in seeds]
    first, second, third = np.mean(latents, 1)
    rows = (first - second + third)[None].astype(np.float32)
    served = client.generate("convolutional", z=rows, format="float")
    assert served.images.shape == (1, 64, 64, 3)
    np.testing.assert_allclose(
        served["image.sample"], by_torch("convolutional", {"z": rows}), atol=1e-4
    )


@pytest.mark.system("DCGAN")
def test_batch_norm_is_that_of_running_statistics(published_repository: Path) -> None:
    assert parity_of(published_repository, "convolutional") <= 1e-4
    model = graph_of(published_repository, "convolutional")
    assert [node.op_type for node in convolutions_of(model)] == ["ConvTranspose"] * 5
    # Nothing is left that could depend on what else is in a batch.
    assert not {node.op_type for node in model.graph.node} & {"ReduceMean", "InstanceNormalization"}
    trained, _ = build_published("convolutional")
    variances = [v for name, v in trained.named_buffers() if name.endswith("running_var")]
    assert len(variances) == 4
    assert all(((variance - 1).abs() > 0.1).any() for variance in variances)


@pytest.mark.system("R3GAN")
def test_grouped_convolutions_are_standard_operators(published_repository: Path) -> None:
    assert parity_of(published_repository, "grouped") <= 1e-4
    model = graph_of(published_repository, "grouped")
    assert {node.domain for node in model.graph.node} == {""}
    groups = [
        attribute.i
        for node in convolutions_of(model)
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert groups.count(4) == 6  # one in each block
    assert groups.count(8) == 2  # the filters of doubling


@pytest.mark.system("ViTGAN")
def test_a_transformer_with_self_modulation_is_exported(
    client: Client, published_repository: Path
) -> None:
    assert parity_of(published_repository, "transformer") <= 1e-4
    operators = {node.op_type for node in graph_of(published_repository, "transformer").graph.node}
    assert {"LayerNormalization", "Softmax"} <= operators
    rows = np.random.RandomState(2).randn(9, 8).astype(np.float32)
    served = client.generate("transformer", z=rows, format="float")
    np.testing.assert_allclose(
        served["image.sample"], by_torch("transformer", {"z": rows}), atol=1e-4
    )


@pytest.mark.system("Structure-preserving GAN")
def test_turning_the_latent_turns_the_picture(client: Client, published_repository: Path) -> None:
    rows = np.random.RandomState(3).randn(5, 4, 4, 4).astype(np.float32)
    still = client.generate("equivariant", z=rows, format="float")["image.sample"]
    assert np.abs(np.rot90(still, 1, (2, 3)) - still).max() > 0.1
    for turns in (1, 2, 3):
        turned = np.ascontiguousarray(np.rot90(rows, turns, (2, 3)))
        served = client.generate("equivariant", z=turned, format="float")["image.sample"]
        np.testing.assert_allclose(served, np.rot90(still, turns, (2, 3)), atol=1e-4)
    # The kernels are turned in the export, and not for each request.
    assert len(convolutions_of(graph_of(published_repository, "equivariant"))) == 4
