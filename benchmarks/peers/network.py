"""The network that every peer serves, as its author would hand it over: a plain PyTorch module."""

import os

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """A DCGAN: z [N, 64] to float32 [N, 3, 64, 64] in [-1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [8 * width, 4 * width, 2 * width, width]
        layers = [nn.ConvTranspose2d(64, widths[0], 4, bias=False), nn.BatchNorm2d(widths[0])]
        for wide, narrow in zip(widths, widths[1:], strict=False):
            layers += [nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
            layers += [nn.BatchNorm2d(narrow)]
        layers += [nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Return the images of z."""
        return torch.as_tensor(self.layers(z[:, :, None, None]))


def build() -> Generator:
    """Return an untrained generator; WIDTH chooses which of the two networks."""
    return Generator(int(os.environ["WIDTH"]))
