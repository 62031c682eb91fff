import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentry.contract.images import Uint8
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.training.data import Digits, Textures
from latentry.training.metrics import (
    SAMPLES,
    generate_images,
    measure_digits,
    measure_textures,
)

Z_DIM = 4


class Replay(nn.Module):
    """Draws real images: z chooses which, the class from which class."""

    def __init__(
        self, images: Tensor, labels: Tensor | None = None, choices: int | None = None
    ) -> None:
        super().__init__()
        self.images, self.labels, self.choices = images, labels, choices

    def forward(self, z: Tensor, class_label: Tensor | None = None) -> Tensor:
        numbers = (z[:, 0].abs() * 1e4).long()
        if class_label is None or self.labels is None:
            return self.images[numbers % len(self.images)]
        members = [torch.nonzero(self.labels == label)[:, 0] for label in class_label]
        return torch.stack(
            [
                self.images[rows[: self.choices][number % len(rows[: self.choices])]]
                for rows, number in zip(members, numbers, strict=True)
            ]
        )


def draw(generator: nn.Module, num_classes: int = 0) -> tuple[Uint8, NDArray[np.int64]]:
    return generate_images(generator, Z_DIM, SAMPLES, num_classes)


def test_samples_follow_the_seed_contract() -> None:
    class Echo(nn.Module):
        def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
            scaled = (z[:, :1] / 10 + class_label[:, None] / 100)[:, :, None, None]
            return scaled.expand(-1, 1, 2, 2)

    images, labels = generate_images(Echo(), Z_DIM, 203, num_classes=3)
    assert images.shape == (203, 2, 2, 1)
    assert labels.tolist() == [seed % 3 for seed in range(203)]
    z = LatentDrawer(LatentInput(name="z", shape=(Z_DIM,))).draw([202])[0, 0]
    expected = int((np.float32(z / 10) + np.float32(labels[202] / 100)) * 127.5 + 128)
    assert images[202, 0, 0, 0] == expected


def test_real_digits_pass_and_a_collapsed_generator_is_found_out() -> None:
    train = Digits().train
    honest = measure_digits(*draw(Replay(train.images, train.labels), 10))
    assert honest["label_agreement"] > 0.99
    assert honest["classifier_accuracy"] > 0.97
    collapsed = measure_digits(*draw(Replay(train.images, train.labels, choices=2), 10))
    assert collapsed["label_agreement"] >= 0.9
    assert collapsed["classifier_accuracy"] < 0.85


@pytest.fixture(scope="module")
def held_out_crops() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(9)
    return Textures().draw_crops(600, rng, held_out=True)


def test_held_out_crops_pass_for_samples(held_out_crops: tuple[Tensor, Tensor]) -> None:
    images, _ = held_out_crops
    metrics = measure_textures(*draw(Replay(images)))
    shares = [value for name, value in metrics.items() if name.startswith("share_")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.25
    assert metrics["photograph_accuracy"] > 0.98
    assert metrics["near_copies"] < 0.01
    assert metrics["nearest_ratio"] == pytest.approx(1, abs=0.15)


@pytest.mark.acceptance
def test_copies_of_one_photograph_are_found_out() -> None:
    rng = torch.Generator().manual_seed(1)  # the same crops that samples are compared with
    images, photographs = Textures().draw_crops(4000, rng)
    metrics = measure_textures(*draw(Replay(images[photographs == 0])))
    assert metrics["share_ihc"] > 0.98
    assert metrics["near_copies"] == 1
    assert metrics["nearest_ratio"] < 0.1
