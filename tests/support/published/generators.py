"""Small generators cut as published ones are: what they take and give, at the size of a test."""

import torch
from specs import PIXELS_16, classes, image, make_spec, z
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Perceptron(nn.Module):
    """A generator of dense layers, as the first GAN's (Goodfellow et al. 2014)."""

    spec = make_spec([z(10)], [image(16, 16, 1, range=[0, 1])])

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 256), nn.Sigmoid())

    def forward(self, z: Tensor) -> Tensor:
        sample: Tensor = self.layers(z)
        return sample.reshape(-1, 1, 16, 16)


class SelfAttention(nn.Module):
    """Class-conditional, with self-attention and spectral norm (Zhang et al. 2019)."""

    spec = make_spec([z(8), classes("cat", "dog", "emu")], [image(16, 16)])

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 8)
        self.first = spectral_norm(nn.Linear(16, 8 * 8 * 8))
        self.query = spectral_norm(nn.Conv2d(8, 2, 1))
        self.key = spectral_norm(nn.Conv2d(8, 2, 1))
        self.value = spectral_norm(nn.Conv2d(8, 8, 1))
        self.up = spectral_norm(nn.ConvTranspose2d(8, 3, 4, 2, 1))

    def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
        x = self.first(torch.cat([z, self.embedding(class_label)], 1)).reshape(-1, 8, 8, 8)
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        x = x + (value @ weights.transpose(1, 2)).reshape(-1, 8, 8, 8)
        return torch.tanh(self.up(torch.relu(x)))


class Layered(nn.Module):
    """Background, foreground and mask, and what they make together (Bielski and Favaro 2019).

    A second latent, noise of a layer, perturbs the foreground.
    """

    spec = make_spec(
        [z(6), {"name": "noise", "kind": "latent", "shape": [1, 16, 16]}],
        [
            image(16, 16),
            {"name": "background", "kind": "picture", "channels": 3, **PIXELS_16},
            {"name": "foreground", "kind": "picture", "channels": 3, **PIXELS_16},
            {"name": "mask", "kind": "mask", **PIXELS_16},
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7 * 16 * 16)

    def forward(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.first(z).reshape(-1, 7, 16, 16)
        background, foreground = torch.tanh(x[:, :3]), torch.tanh(x[:, 3:6] + 0.3 * noise)
        mask = torch.sigmoid(x[:, 6:])
        return mask * foreground + (1 - mask) * background, background, foreground, mask


class Translation(nn.Module):
    """A picture and a mask into a picture and how much was changed; normalised sample by sample."""

    spec = make_spec(
        [
            {"name": "image", "kind": "picture", "channels": 3, **PIXELS_16},
            {"name": "region", "kind": "mask", **PIXELS_16},
            {"name": "strength", "kind": "number", "minimum": 0, "maximum": 1, "default": 1},
        ],
        [image(16, 16), {"name": "change", "kind": "vector", "size": 3}],
    )

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 4, 2, 1)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, image: Tensor, region: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([image, region], 1)
        deep = torch.relu(self.up(torch.relu(self.norm(self.down(x)))))
        change = torch.tanh(self.last(torch.cat([x, deep], 1))) * region
        change = change * strength[:, None, None, None]
        return image + change, change.abs().amax((2, 3))


class Enlarger(nn.Module):
    """Pictures of any size, twice as large."""

    spec = make_spec(
        [
            {
                "name": "image",
                "kind": "picture",
                "height": {"minimum": 8, "maximum": 64, "multiple_of": 4},
                "width": {"minimum": 8, "maximum": 96},
                "channels": 3,
                "range": [0, 1],
            }
        ],
        [
            {
                "name": "enlarged",
                "kind": "picture",
                "height": {"minimum": 16, "maximum": 128},
                "width": {"minimum": 16, "maximum": 192},
                "channels": 3,
                "range": [0, 1],
            }
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        detail = nn.functional.pixel_shuffle(self.last(torch.relu(self.first(image))), 2)
        return nn.functional.interpolate(image, scale_factor=2.0) + 0.2 * torch.tanh(detail)
