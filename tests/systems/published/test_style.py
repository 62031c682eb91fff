"""Published style-based generators: w, truncation and the noise of layers are a caller's."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from published.catalogue import build_published
from published.style import NUM_WS, W_DIM, Demodulated, MultiConditional, StyleBased

from latentry.clients import BadRequest, Client
from latentry.contract.seeds import stream_words
from latentry.contract.stages.truncate import TruncateStage
from latentry.serving.entries.repository import newest_entries

pytestmark = [pytest.mark.server, pytest.mark.acceptance]

SIDES = (8, 8, 16, 16)


def style_based() -> StyleBased:
    module, _ = build_published("style")
    assert isinstance(module, StyleBased)
    return module


def noises_of(seeds: list[int]) -> list[NDArray[np.float32]]:
    """Return what the seeds draw for each layer."""
    drawn = []
    for index, side in enumerate(SIDES):
        words = stream_words(f"latent:noise_{index}")
        rows = [np.random.RandomState([seed, *words]).randn(1, side, side) for seed in seeds]
        drawn.append(np.stack(rows).astype(np.float32))
    return drawn


def drawn_by(network: Any, *arrays: NDArray[Any]) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = network(*map(torch.from_numpy, arrays)).numpy()
    return result


@pytest.mark.system("StyleGAN")
def test_styles_are_mixed_by_the_caller_at_any_layer(client: Client) -> None:
    first, second = client.generate("styles", seeds=[3, 4])["w"]
    assert first.shape == (NUM_WS, W_DIM)
    mixed = np.stack(
        [np.concatenate([first[:layer], second[layer:]]) for layer in range(NUM_WS + 1)]
    )
    seeds = [7] * len(mixed)
    served = client.generate("style", seeds=seeds, w=mixed, format="float")
    expected = drawn_by(style_based().synthesis, mixed, *noises_of(seeds))
    np.testing.assert_allclose(served["image.sample"], expected, atol=1e-4)
    changes = np.abs(np.diff(expected, axis=0)).max((1, 2, 3))
    assert (changes > 0.01).all()  # every layer has its say


@pytest.mark.system("StyleGAN")
def test_mapping_and_synthesis_are_networks_of_their_own(
    client: Client, published_repository: Path
) -> None:
    (entry,) = newest_entries(published_repository, ("style",))
    assert set(entry.build.artefacts) == {"mapping.onnx", "synthesis.onnx"}
    assert max(entry.build.parity.differences.values()) <= 1e-3
    whole = client.generate("style", seeds=[5, 6])
    halves = client.generate("style", seeds=[5, 6], w=client.generate("styles", seeds=[5, 6])["w"])
    np.testing.assert_array_equal(whole.images, halves.images)
    with pytest.raises(BadRequest, match="z acts in a network that w goes around"):
        client.generate("style", seeds=5, w=np.zeros((NUM_WS, W_DIM)), z=np.zeros(8))


@pytest.mark.system("StyleGAN")
def test_noise_of_each_layer_is_drawn_or_given(client: Client) -> None:
    w = np.random.RandomState(5).randn(1, NUM_WS, W_DIM).astype(np.float32)
    noises = noises_of([8])
    served = client.generate("style", seeds=8, w=w)
    for index, noise in enumerate(noises):
        same: dict[str, Any] = {f"noise_{index}": noise}
        given = client.generate("style", seeds=8, w=w, **same)
        np.testing.assert_array_equal(given.images, served.images)
        silent = [np.zeros_like(n) if k == index else n for k, n in enumerate(noises)]
        without: dict[str, Any] = {f"noise_{index}": silent[index]}
        other = client.generate("style", seeds=8, w=w, **without, format="float")
        expected = drawn_by(style_based().synthesis, w, *silent)
        np.testing.assert_allclose(other["image.sample"], expected, atol=1e-4)
        assert (other.images != served.images).any()


@pytest.mark.system("StyleGAN")
def test_truncation_is_towards_the_average_that_the_module_keeps(client: Client) -> None:
    average = style_based().mapping.w_avg.numpy()
    stages = client.info("style").spec.stages
    (truncate,) = (stage for stage in stages if isinstance(stage, TruncateStage))
    assert truncate.w_avg is not None
    np.testing.assert_array_equal(np.array(truncate.w_avg, np.float32), average)
    psi = np.array([-0.5, 0, 0.4, 1, 1.5], np.float32)
    seeds = [2] * 5
    served = client.generate("style", seeds=seeds, truncation_psi=psi, format="float")
    z = np.random.RandomState(2).randn(1, 8).astype(np.float32).repeat(5, 0)
    w = drawn_by(style_based().mapping, z)
    w = average + psi[:, None, None] * (w - average)
    expected = drawn_by(style_based().synthesis, w, *noises_of(seeds))
    np.testing.assert_allclose(served["image.sample"], expected, atol=1e-4)


@pytest.mark.system("StyleGAN2")
def test_modulated_convolutions_have_constant_weights(
    client: Client, published_repository: Path
) -> None:
    (entry,) = newest_entries(published_repository, ("demodulated",))
    assert entry.build.parity.batch_sizes == (1, 3, 7, 8)
    assert entry.build.parity.differences["image.sample"] <= 1e-3
    (path,) = (published_repository / "demodulated").glob("1/builds/*/synthesis.onnx")
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}
    constants = {tensor.name for tensor in graph.initializer}
    found = [node for node in graph.node if node.op_type in {"Conv", "ConvTranspose"}]
    assert len(found) == 4 + 2  # modulated ones and filters
    assert all(node.input[1] in constants for node in found)


@pytest.mark.system("StyleGAN2")
@pytest.mark.parametrize("count", [1, 5, 11])
def test_a_batch_of_any_size_is_that_of_torch(client: Client, count: int) -> None:
    module, _ = build_published("demodulated")
    assert isinstance(module, Demodulated)
    random = np.random.RandomState(count)
    shapes = {"w": (4, W_DIM), "noise_0": (1, 8, 8), "noise_1": (1, 16, 16)}
    rows: dict[str, Any] = {
        name: random.randn(count, *s).astype(np.float32) for name, s in shapes.items()
    }
    served = client.generate("demodulated", **rows, format="float")
    expected = drawn_by(module.synthesis, *rows.values())
    np.testing.assert_allclose(served["image.sample"], expected, atol=1e-4)


@pytest.mark.system("Multi-conditional StyleGAN")
def test_truncation_is_towards_the_mean_of_the_conditions(client: Client) -> None:
    module, _ = build_published("multi_conditional")
    assert isinstance(module, MultiConditional)
    conditions: dict[str, Any] = {"painter": ["any", "Klee", "any", "Monet"], "genre": [0, 0, 2, 1]}
    painter, genre = torch.tensor([0, 2, 0, 1]), torch.tensor([0, 0, 2, 1])
    with torch.no_grad():
        expected = module.synthesis(module.means[painter, genre]).numpy()
        often = module.means_over(torch.randn(5000, 8))
    for seeds in (range(4), range(50, 54)):
        served = client.generate(
            "multi_conditional", seeds=seeds, **conditions, truncation_psi=0, format="float"
        )
        np.testing.assert_allclose(served["image.sample"], expected, atol=1e-5)
    apart = np.abs(expected[:, None] - expected).max((2, 3, 4))
    assert (apart[~np.eye(4, dtype=bool)] > 0.01).all()
    torch.testing.assert_close(module.means, often, atol=0.1, rtol=0)
