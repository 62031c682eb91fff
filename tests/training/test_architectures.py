import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentry.contract.errors import CheckpointError
from latentry.training.architectures import ARCHITECTURES, build
from latentry.training.discriminators import ProjectionDiscriminator, batch_deviation


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("batch", [1, 3])
def test_dcgan_gives_its_resolution_within_minus_one_and_one(resolution: int, batch: int) -> None:
    module = build("dcgan", {"z_dim": 5, "width": 2, "channels": 3, "resolution": resolution})
    sample = module.eval()(torch.randn(batch, 5) * 100)
    assert sample.shape == (batch, 3, resolution, resolution)
    assert sample.dtype == torch.float32
    assert sample.abs().max() <= 1


def test_the_class_changes_the_sample() -> None:
    config = {"z_dim": 5, "width": 8, "channels": 1, "num_classes": 4}
    module = build("conditional_dcgan", config).eval()
    z = torch.randn(1, 5).expand(4, 5)
    samples = module(z, torch.arange(4))
    assert samples.shape == (4, 1, 32, 32)
    assert len(samples.flatten(1).unique(dim=0)) == 4


def test_a_row_does_not_depend_on_its_batch() -> None:
    config = {"z_dim": 5, "width": 2, "channels": 1, "num_classes": 4}
    module = build("conditional_dcgan", config).eval()
    z, labels = torch.randn(7, 5), torch.arange(7) % 4
    torch.testing.assert_close(module(z, labels)[4:5], module(z[4:5], labels[4:5]))


def test_the_size_of_a_dcgan_of_width_64_is_the_published_one() -> None:
    module = build("dcgan", {"z_dim": 64, "width": 64, "channels": 3})
    macs: list[int] = []

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.ConvTranspose2d)
        pixels = output.shape[2] * output.shape[3]
        macs.append(layer.weight.numel() * pixels // layer.stride[0] ** 2)

    layers = [item for item in module.modules() if isinstance(item, nn.ConvTranspose2d)]
    for layer in layers:
        layer.register_forward_hook(count)
    module.eval()(torch.zeros(1, 64))
    assert [layer.out_channels for layer in layers] == [512, 256, 128, 64, 3]
    # The first layer sees one pixel, so each of its weights counts once and not 16 times.
    assert sum(macs[1:]) + layers[0].weight.numel() == 104_333_312


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match="'biggan' is unknown; use one of conditional_dcgan"):
        build("biggan", {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"z_dim": 4, "width": 2, "channels": 1, "depth": 3}, r"unknown keys \['depth'\]"),
        ({"z_dim": 4}, r"lacks \['width', 'channels'\]; it takes z_dim, width, channels, resolut"),
        ({"z_dim": "4", "width": 2, "channels": 1}, "z_dim is '4'; it is an integer from 1"),
        ({"z_dim": 4, "width": 0, "channels": 1}, "width is 0; it is an integer from 1"),
        ({"z_dim": 65537, "width": 2, "channels": 1}, "z_dim is 65537; it is .* from 1 to 65536"),
        ({"z_dim": 4, "width": 2, "channels": True}, "channels is True"),
        ({"z_dim": 4, "width": 2, "channels": 1, "resolution": 48}, "48; it is a power of two"),
        ({"z_dim": 4, "width": 2, "channels": 1, "resolution": 4}, "4; it is a power of two"),
    ],
)
def test_a_wrong_config_is_explained(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build("dcgan", config)


def test_every_architecture_and_argument_is_documented() -> None:
    for name, architecture in ARCHITECTURES.items():
        for argument in inspect.signature(architecture).parameters:
            assert f"{argument}:" in (architecture.__doc__ or ""), (name, argument)


def test_the_discriminator_scores_each_image_by_its_class() -> None:
    torch.manual_seed(0)
    module = ProjectionDiscriminator(channels=1, resolution=16, width=4, num_classes=3)
    images = torch.randn(5, 1, 16, 16)
    first = module.eval()(images, torch.zeros(5, dtype=torch.int64))
    second = module(images, torch.ones(5, dtype=torch.int64))
    assert first.shape == (5,)
    assert not torch.allclose(first, second)


def test_batch_deviation_is_nothing_for_equal_rows_and_one_for_a_standard_normal() -> None:
    assert batch_deviation(torch.randn(1, 3, 4, 4).expand(6, 3, 4, 4)).max() < 1e-3
    varied = batch_deviation(torch.randn(200, 8, 4, 4))
    assert varied.shape == (200, 8, 4, 4)
    assert varied.mean() == pytest.approx(1, abs=0.05)
