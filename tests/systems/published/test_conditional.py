"""Published generators of classes and of example pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from published.catalogue import build_published, by_torch
from published.conditional import OfAnInstance

from latentry.clients import BadRequest, Client
from latentry.serving.entries.repository import newest_entries

pytestmark = [pytest.mark.server, pytest.mark.acceptance]


def within_two(seed: int) -> NDArray[np.float32]:
    """Return z of a seed, with what is beyond 2 drawn again, by hand."""
    random = np.random.RandomState(seed)
    z = random.randn(12)
    while (beyond := np.abs(z) > 2).any():
        z[beyond] = random.randn(beyond.sum())
    return z.astype(np.float32)


@pytest.mark.system("BigGAN")
def test_truncation_is_a_request_parameter(client: Client, published_repository: Path) -> None:
    seeds, labels = [0, 1, 21, 22], [2, 0, 1, 1]
    truncation = np.array([0.02, 0.5, 0.8, 1.0], np.float32)
    served = client.generate(
        "split_latent", seeds=seeds, class_label=labels, truncation=truncation, format="float"
    )
    rows = {
        "z": np.stack([within_two(seed) for seed in seeds]) * truncation[:, None],
        "class_label": np.array(labels),
        "truncation": np.ones(4, np.float32),
    }
    np.testing.assert_allclose(served["image.sample"], by_torch("split_latent", rows), atol=1e-5)
    (entry,) = newest_entries(published_repository, ("split_latent",))
    assert entry.build.parity.differences["image.sample"] <= 1e-3
    with pytest.raises(BadRequest, match="truncation in row 0 is 1.5; it takes"):
        client.generate("split_latent", seeds=0, class_label=0, truncation=1.5)


@pytest.mark.system("BigGAN")
def test_little_truncation_leaves_little_variety(client: Client) -> None:
    """Each class has its own centre, to which its samples go."""
    spreads = []
    for truncation in (1, 0.3, 0.02):
        served = client.generate(
            "split_latent", seeds=range(16), class_label=1, truncation=truncation, format="float"
        )
        spreads.append(float(served["image.sample"].std(0).mean()))
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2] > 0


@pytest.mark.system("IC-GAN")
def test_a_picture_and_its_features_are_one_road(client: Client) -> None:
    module, _ = build_published("instance")
    assert isinstance(module, OfAnInstance)
    pictures = np.random.RandomState(4).randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    taken = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        feature = module.extractor(taken).numpy()
    by_picture = client.generate("instance", seeds=range(3), instance=pictures, format="float")
    by_feature = client.generate("instance", seeds=range(3), feature=feature, format="float")
    np.testing.assert_allclose(by_feature["image.sample"], by_picture["image.sample"], atol=1e-4)
    other = client.generate("instance", seeds=range(3), feature=-feature)
    assert (other.images != by_picture.images).any((1, 2, 3)).all()


@pytest.mark.system("IC-GAN")
def test_the_class_of_an_instance_is_optional(client: Client) -> None:
    feature = np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)
    none = client.generate("instance", seeds=range(2), feature=feature, format="float")
    emu: dict[str, Any] = {"class_weights": [0, 0, 1]}
    named = client.generate("instance", seeds=range(2), feature=feature, **emu, format="float")
    module, _ = build_published("instance")
    assert isinstance(module, OfAnInstance)
    z = np.stack([np.random.RandomState(seed).randn(6) for seed in range(2)]).astype(np.float32)
    for served, weights in ((none, torch.zeros(2, 3)), (named, torch.eye(3)[[2, 2]])):
        with torch.no_grad():
            expected = module.decoder(torch.from_numpy(z), torch.from_numpy(feature), weights)
        np.testing.assert_allclose(served["image.sample"], expected.numpy(), atol=1e-5)
