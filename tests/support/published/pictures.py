"""Generators of a picture that is given, small and untrained."""

import torch
from specs import PIXELS_16, Part, image, make_spec, z
from torch import Tensor, nn
from torch.nn import functional

PICTURE: Part = {"name": "photo", "kind": "picture", "channels": 3, **PIXELS_16}
SIDES = {name: {"minimum": 8, "maximum": 32, "multiple_of": 8} for name in ("height", "width")}


class PairedTranslation(nn.Module):
    """A U-Net with norms of each sample and dropout that is drawn (pix2pix, Isola et al. 2017).

    Its only noise is the dropout, which stays in use: a latent says what is dropped.
    """

    spec = make_spec(
        [
            PICTURE,
            {
                "name": "dropout",
                "kind": "latent",
                "shape": [8, 8, 8],
                "distribution": "uniform",
                "minimum": 0,
                "maximum": 1,
            },
        ],
        [image(16, 16)],
    )

    def __init__(self) -> None:
        super().__init__()
        self.downs = nn.ModuleList([nn.Conv2d(n, 8, 4, 2, 1) for n in (3, 8, 8)])
        self.ups = nn.ModuleList([nn.ConvTranspose2d(n, 8, 4, 2, 1) for n in (8, 16)])
        self.norms = nn.ModuleList([nn.InstanceNorm2d(8, affine=True) for _ in range(4)])
        self.last = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, photo: Tensor, dropout: Tensor) -> Tensor:
        first = self.downs[0](photo)
        second = self.norms[0](self.downs[1](functional.leaky_relu(first, 0.2)))
        third = self.norms[1](self.downs[2](functional.leaky_relu(second, 0.2)))
        x = torch.cat([self.norms[2](self.ups[0](torch.relu(third))), second], 1)
        x = self.norms[3](self.ups[1](torch.relu(x))) * (dropout >= 0.5) * 2
        return torch.tanh(self.last(torch.relu(torch.cat([x, first], 1))))


class GatedConv(nn.Module):
    """A convolution whose other half opens or shuts it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        features, gate = self.conv(x).chunk(2, 1)
        return functional.elu(features) * torch.sigmoid(gate)


class GatedInpainting(nn.Module):
    """What a mask shows is painted anew along a sketch (DeepFill v2, Yu et al. 2019).

    Two networks, coarse and refined, of pictures of many sizes.
    """

    spec = make_spec(
        [
            {"name": "image", "kind": "picture", "channels": 3, **SIDES},
            {"name": "hole", "kind": "mask", **SIDES},
            {"name": "sketch", "kind": "picture", "channels": 1, "range": [0, 1], **SIDES},
        ],
        [{"name": "image", "kind": "picture", "channels": 3, **SIDES}],
        [
            {"network": "coarse", "takes": ["image", "hole", "sketch"], "gives": ["rough"]},
            {"network": "refine", "takes": ["image", "hole", "rough"], "gives": ["image"]},
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([GatedConv(5, 8, 2), GatedConv(8, 8)])
        self.second = nn.ModuleList([GatedConv(4, 8)])
        self.outs = nn.ModuleList([nn.Conv2d(8, 3, 3, padding=1) for _ in "ab"])

    def coarse(self, image: Tensor, hole: Tensor, sketch: Tensor) -> Tensor:
        x = torch.cat([image * (1 - hole), hole, sketch * hole], 1)
        for layer in self.first:
            x = layer(x)
        return torch.tanh(self.outs[0](functional.interpolate(x, scale_factor=2.0)))

    def refine(self, image: Tensor, hole: Tensor, rough: Tensor) -> Tensor:
        x = torch.cat([image * (1 - hole) + rough * hole, hole], 1)
        for layer in self.second:
            x = layer(x)
        return image * (1 - hole) + torch.tanh(self.outs[1](x)) * hole

    def forward(self, image: Tensor, hole: Tensor, sketch: Tensor) -> Tensor:
        return self.refine(image, hole, self.coarse(image, hole, sketch))


class Colouring(nn.Module):
    """Colours for a grey picture of any size (Nazeri et al. 2018).

    The grey is the lightness of CIE Lab, 0 to 100; the network adds a and b, and gives RGB.
    """

    spec = make_spec(
        [{"name": "grey", "kind": "picture", "channels": 1, "range": [0, 100], **SIDES}],
        [{"name": "image", "kind": "picture", "channels": 3, "range": [0, 1], **SIDES}],
    )
    to_linear: Tensor
    white: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1), nn.Tanh()
        )
        rows = [
            *([3.2404542, -1.5371385, -0.4985314], [-0.969266, 1.8760108, 0.041556]),
            [0.0556434, -0.2040259, 1.0572252],
        ]
        self.register_buffer("to_linear", torch.tensor(rows))
        self.register_buffer("white", torch.tensor([0.95047, 1.0, 1.08883])[:, None, None])

    def colours(self, grey: Tensor) -> Tensor:
        """Return a and b."""
        ab: Tensor = 60 * self.layers(grey / 50 - 1)
        return ab

    def forward(self, grey: Tensor) -> Tensor:
        a, b = self.colours(grey).chunk(2, 1)
        y = (grey + 16) / 116
        f = torch.cat([y + a / 500, y, y - b / 200], 1)
        xyz = torch.where(f > 6 / 29, f**3, (f - 16 / 116) * 3 * (6 / 29) ** 2) * self.white
        linear = torch.einsum("rc,nchw->nrhw", self.to_linear, xyz).clamp(0, 1)
        curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
        return torch.where(linear > 0.0031308, curved, 12.92 * linear)


class Denoiser(nn.Module):
    """One of many clean pictures that a noisy one may come of (PSCGAN, Ohayon et al. 2021)."""

    spec = make_spec(
        [
            {**PICTURE, "range": [0, 1]},
            z(1, 16, 16),
            {"name": "noise_level", "kind": "number", "minimum": 0, "maximum": 75, "default": 25},
        ],
        [image(16, 16, range=[0, 1])],
    )

    def __init__(self) -> None:
        super().__init__()
        self.texture = nn.Sequential(
            nn.Conv2d(5, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1), nn.Tanh()
        )

    def forward(self, photo: Tensor, z: Tensor, noise_level: Tensor) -> Tensor:
        level = (noise_level / 75)[:, None, None, None]
        padded = functional.pad(photo, (1, 1, 1, 1), mode="reflect")
        smooth = photo + (functional.avg_pool2d(padded, 3, 1) - photo) * level
        x = torch.cat([smooth, z, level.expand_as(z)], 1)
        drawn: Tensor = smooth + 0.5 * level * self.texture(x)
        return drawn
