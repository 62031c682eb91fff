"""Generators of a class or of an example picture, small and untrained."""

import torch
from specs import PIXELS_16, classes, image, make_spec, w, z
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class ConditionalNorm(nn.Module):
    """Batch norm by running statistics, with scale and shift of a condition (BigGAN)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = spectral_norm(nn.Linear(condition, channels, bias=False))
        self.shift = spectral_norm(nn.Linear(condition, channels, bias=False))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = (f(condition)[:, :, None, None] for f in (self.scale, self.shift))
        moved: Tensor = (1 + scale) * self.norm(x) + shift
        return moved


class ConditionalBlock(nn.Module):
    """A residual block that doubles the size."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([ConditionalNorm(channels, condition) for _ in "ab"])
        self.convs = nn.ModuleList(
            [spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)) for _ in "ab"]
        )
        self.shortcut = spectral_norm(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = functional.interpolate(torch.relu(self.norms[0](x, condition)), scale_factor=2)
        y = torch.relu(self.norms[1](self.convs[0](y), condition))
        shortcut = self.shortcut(functional.interpolate(x, scale_factor=2))
        sum_: Tensor = self.convs[1](y) + shortcut
        return sum_


class SplitLatent(nn.Module):
    """A part of z for each block, one embedding for all (BigGAN, Brock et al. 2019).

    ``truncation`` scales a latent that is drawn within 2, as BigGAN's published modules take it.
    """

    spec = make_spec(
        [
            z(12, distribution="truncated_normal"),
            classes("cat", "dog", "emu"),
            {"name": "truncation", "kind": "number", "minimum": 0.02, "maximum": 1, "default": 1},
        ],
        [image(16, 16)],
    )

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 6)
        self.first = spectral_norm(nn.Linear(4, 8 * 4 * 4))
        self.blocks = nn.ModuleList([ConditionalBlock(8, 4 + 6) for _ in range(2)])
        self.norm = nn.BatchNorm2d(8)
        self.last = spectral_norm(nn.Conv2d(8, 3, 3, padding=1))
        with torch.no_grad():  # the standing statistics, and the steps that spectral norm takes
            for _ in range(20):
                self(torch.randn(16, 12), torch.randint(3, (16,)), torch.ones(16))

    def forward(self, z: Tensor, class_label: Tensor, truncation: Tensor) -> Tensor:
        first, *others = (z * truncation[:, None]).chunk(3, 1)
        shared = self.embedding(class_label)
        x = self.first(first).reshape(-1, 8, 4, 4)
        for block, part in zip(self.blocks, others, strict=True):
            x = block(x, torch.cat([shared, part], 1))
        return torch.tanh(self.last(torch.relu(self.norm(x))))


class OfAnInstance(nn.Module):
    """Of one example picture, by its features, and of a class or none (IC-GAN, 2021)."""

    spec = make_spec(
        [
            z(6),
            {"name": "instance", "kind": "picture", "channels": 3, **PIXELS_16},
            {**w(5), "name": "feature"},
            {
                "name": "class_weights",
                "kind": "vector",
                "size": 3,
                "entries": ["cat", "dog", "emu"],
                "minimum": 0,
                "maximum": 1,
                "default": [0, 0, 0],
            },
        ],
        [image(16, 16)],
        [
            {"network": "extractor", "takes": ["instance"], "gives": ["feature"]},
            {"network": "decoder", "takes": ["z", "feature", "class_weights"], "gives": ["image"]},
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 5, 2))
        self.embedding = nn.Linear(3, 4, bias=False)
        self.layers = nn.Sequential(
            nn.Linear(6 + 5 + 4, 8 * 8 * 8),
            nn.Unflatten(1, (8, 8, 8)),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def extractor(self, instance: Tensor) -> Tensor:
        return functional.normalize(self.body(instance).mean((2, 3)))

    def decoder(self, z: Tensor, feature: Tensor, class_weights: Tensor) -> Tensor:
        sample: Tensor = self.layers(torch.cat([z, feature, self.embedding(class_weights)], 1))
        return sample

    def forward(self, z: Tensor, instance: Tensor, class_weights: Tensor) -> Tensor:
        return self.decoder(z, self.extractor(instance), class_weights)
