"""Generator architectures by name, so that a checkpoint can say in JSON how to build its module.

Every generator takes ``z`` [N, z_dim] float32 (and ``class_label`` [N] int64 where it is
conditional) and gives float32 [N, channels, resolution, resolution] in [-1, 1]. Any batch size is
taken, and nothing is drawn at random inside ``forward``: the seed fixes the sample.
"""

import inspect
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from latentry.contract.errors import CheckpointError

_FIRST_RESOLUTION = 4
_MAX_SIZE = 65536
_INIT_STD = 0.02  # Radford et al. 2016, section 3


class DCGAN(nn.Module):
    """The unconditional generator of DCGAN (Radford et al. 2016, figure 1).

    Transposed convolutions double the resolution from 4x4 and halve the channels, which start at
    ``width * resolution / 8`` and end at ``width``.

    Args:
        z_dim: Length of z.
        width: Channels of the last hidden layer.
        channels: Channels of the image, 1 or 3.
        resolution: Height and width of the image, a power of two from 8.

    Raises:
        CheckpointError: A size is no integer from 1 to 65536, or the resolution is no power of two.
    """

    def __init__(self, z_dim: int, width: int, channels: int, resolution: int = 64) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, width=width, channels=channels, resolution=resolution)
        widths = layer_widths(width, resolution)
        layers: list[nn.Module] = [_first_layer(z_dim, widths[0]), nn.BatchNorm2d(widths[0])]
        for wide, narrow in pairwise(widths):
            layers += [nn.ReLU(), _doubling_layer(wide, narrow), nn.BatchNorm2d(narrow)]
        layers += [nn.ReLU(), _doubling_layer(widths[-1], channels, bias=True), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the sample, float32 [N, channels, resolution, resolution], of z [N, z_dim]."""
        sample: Tensor = self.layers(z[:, :, None, None])
        return sample


class ConditionalDCGAN(nn.Module):
    """A DCGAN whose batch normalisations are conditional on the class.

    The class chooses the scale and shift after each normalisation (de Vries et al. 2017, used for
    GANs by Miyato and Koyama 2018, section 4); the convolutions are shared by all classes.

    Args:
        z_dim: Length of z.
        width: Channels of the last hidden layer.
        channels: Channels of the image, 1 or 3.
        num_classes: Number of classes.
        resolution: Height and width of the image, a power of two from 8.

    Raises:
        CheckpointError: A size is no integer from 1 to 65536, or the resolution is no power of two.
    """

    def __init__(
        self, z_dim: int, width: int, channels: int, num_classes: int, resolution: int = 32
    ) -> None:
        super().__init__()
        sizes = {"z_dim": z_dim, "width": width, "channels": channels, "num_classes": num_classes}
        check_sizes(**sizes, resolution=resolution)
        widths = layer_widths(width, resolution)
        convolutions = [_first_layer(z_dim, widths[0])]
        convolutions += [_doubling_layer(wide, narrow) for wide, narrow in pairwise(widths)]
        self.convolutions = nn.ModuleList(convolutions)
        self.norms = nn.ModuleList(ConditionalBatchNorm(size, num_classes) for size in widths)
        self.last = _doubling_layer(widths[-1], channels, bias=True)

    def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
        """Return the sample of z and its class.

        Args:
            z: float32 [N, z_dim].
            class_label: int64 [N], 0 .. num_classes - 1.

        Returns:
            float32 [N, channels, resolution, resolution] in [-1, 1].
        """
        x = z[:, :, None, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = torch.relu(norm(convolution(x), class_label))
        return torch.tanh(self.last(x))


class ConditionalBatchNorm(nn.Module):
    """Batch normalisation with one scale and shift per class (de Vries et al. 2017).

    Args:
        size: Channels of the input.
        num_classes: Number of classes.
    """

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(size, affine=False)
        self.scale = nn.Embedding(num_classes, size)
        self.shift = nn.Embedding(num_classes, size)
        # Classes start different: from equal ones the generator takes long to heed the class.
        nn.init.normal_(self.scale.weight, mean=1.0)
        nn.init.normal_(self.shift.weight)

    def forward(self, x: Tensor, class_label: Tensor) -> Tensor:
        """Return x [N, size, H, W] normalised, then scaled and shifted by class_label [N]."""
        scale = self.scale(class_label)[:, :, None, None]
        shift = self.shift(class_label)[:, :, None, None]
        result: Tensor = self.norm(x) * scale + shift
        return result


ARCHITECTURES: dict[str, type[nn.Module]] = {
    "dcgan": DCGAN,
    "conditional_dcgan": ConditionalDCGAN,
}


def build(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a new generator, in training mode, with random weights.

    Args:
        architecture: A key of :data:`ARCHITECTURES`.
        config: The arguments of that class; those with a default may be left out.

    Raises:
        CheckpointError: The architecture is unknown, or a config key is unknown, missing, or has
            a value that the architecture does not take.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"architecture {architecture!r} is unknown; use one of {known}")
    takes = inspect.signature(ARCHITECTURES[architecture]).parameters
    needs = [key for key, parameter in takes.items() if parameter.default is parameter.empty]
    unknown = [key for key in config if key not in takes]
    missing = [key for key in needs if key not in config]
    if unknown or missing:
        raise CheckpointError(
            f"config of {architecture} has unknown keys {unknown} and lacks {missing}; "
            f"it takes {', '.join(takes)} and needs {', '.join(needs)}"
        )
    return ARCHITECTURES[architecture](**config)


def layer_widths(width: int, resolution: int) -> list[int]:
    """Return the channels of the hidden layers of a generator, from 4x4 to resolution / 2."""
    doublings = (resolution // _FIRST_RESOLUTION).bit_length() - 2
    return [width * 2**power for power in range(doublings, -1, -1)]


def check_sizes(*, resolution: int, **sizes: int) -> None:
    """Check the sizes of a network.

    Raises:
        CheckpointError: A size is no integer from 1 to 65536, or the resolution is no power of two
            from 8.
    """
    for name, size in {**sizes, "resolution": resolution}.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
            raise CheckpointError(f"{name} is {size!r}; it is an integer from 1 to {_MAX_SIZE}")
    if resolution < 2 * _FIRST_RESOLUTION or resolution & (resolution - 1):
        raise CheckpointError(f"resolution is {resolution}; it is a power of two from 8")


def _first_layer(z_dim: int, channels: int) -> nn.ConvTranspose2d:
    return _initialised(nn.ConvTranspose2d(z_dim, channels, _FIRST_RESOLUTION, bias=False))


def _doubling_layer(wide: int, narrow: int, *, bias: bool = False) -> nn.ConvTranspose2d:
    return _initialised(nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=bias))


def _initialised(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    nn.init.normal_(layer.weight, std=_INIT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
