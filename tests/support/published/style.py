"""Style-based generators, small and untrained: a mapping and a synthesis network each."""

from collections.abc import Iterable
from typing import Any

import torch
from specs import Part, classes, image, make_spec, psi, w, z
from torch import Tensor, nn
from torch.nn import functional

W_DIM = 8


def noise(index: int, side: int) -> Part:
    """Return the noise of a layer."""
    return {"name": f"noise_{index}", "kind": "latent", "shape": [1, side, side]}


def second_moment(z: Tensor) -> Tensor:
    """Return z at length 1 for each number."""
    return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """From z to w, one row for each layer of the synthesis network, with the average of it."""

    w_avg: Tensor

    def __init__(self, num_ws: int, features: int = 8) -> None:
        super().__init__()
        self.num_ws = num_ws
        self.layers = nn.Sequential(
            *(nn.Linear(features, W_DIM), nn.LeakyReLU(0.2)),
            *(nn.Linear(W_DIM, W_DIM), nn.LeakyReLU(0.2)),
        )
        with torch.no_grad():
            w_avg = self.layers(second_moment(torch.randn(500, features))).mean(0)
        self.register_buffer("w_avg", w_avg)

    def forward(self, z: Tensor) -> Tensor:
        w: Tensor = self.layers(second_moment(z))
        return w[:, None].repeat(1, self.num_ws, 1)


class StyledLayer(nn.Module):
    """A convolution, noise, and a style for what is normalised by itself (StyleGAN's AdaIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.strength = nn.Parameter(0.3 * torch.rand(8, 1, 1))
        self.style = nn.Linear(W_DIM, 16)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        x = functional.leaky_relu(self.conv(x) + self.strength * noise, 0.2)
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
        styled: Tensor = functional.instance_norm(x) * (1 + scale) + shift
        return styled


NUM_WS = 4


class StyleBased(nn.Module):
    """A style-based generator (StyleGAN, Karras et al. 2019): w and all noise open to callers."""

    spec = make_spec(
        [
            *(z(8), w(NUM_WS, W_DIM), psi()),
            *[noise(index, side) for index, side in enumerate((8, 8, 16, 16))],
        ],
        [image(16, 16)],
        [
            {"network": "mapping", "takes": ["z"], "gives": ["w"]},
            {"operation": "truncate", "takes": ["w", "truncation_psi"], "gives": ["w_truncated"]},
            {
                "network": "synthesis",
                "takes": ["w_truncated", *(f"noise_{index}" for index in range(NUM_WS))],
                "gives": ["image"],
            },
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Mapping(NUM_WS)
        self.constant = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.layers = nn.ModuleList([StyledLayer() for _ in range(NUM_WS)])
        self.last = nn.Conv2d(8, 3, 1)

    def synthesis(self, w: Tensor, *noises: Tensor) -> Tensor:
        x = self.constant.expand(w.shape[0], -1, -1, -1)
        for index, (layer, noise) in enumerate(zip(self.layers, noises, strict=True)):
            if noise.shape[-1] > x.shape[-1]:
                x = functional.interpolate(x, scale_factor=2, mode="bilinear")
            x = layer(x, w[:, index], noise)
        return torch.tanh(self.last(x))

    def forward(self, z: Tensor, truncation_psi: Tensor, *noises: Tensor) -> Tensor:
        average = self.mapping.w_avg
        w = average + truncation_psi[:, None, None] * (self.mapping(z) - average)
        return self.synthesis(w, *noises)


class Styles(nn.Module):
    """The mapping network of a style-based generator as a model of its own: w to be mixed."""

    spec = make_spec([z(8)], [{"name": "w", "kind": "tensor", "shape": [NUM_WS, W_DIM]}])

    def __init__(self) -> None:
        super().__init__()
        self.mapping = StyleBased().mapping

    def forward(self, z: Tensor) -> Tensor:
        w: Tensor = self.mapping(z)
        return w


def upfirdn2d(x: Tensor, taps: Tensor, *, up: int, padding: Iterable[int]) -> Tensor:
    """Put zeros between pixels, pad, and filter, as the reference of NVlabs' StyleGAN2 does."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height, 1, width, 1)
    x = functional.pad(x, [0, up - 1, 0, 0, 0, up - 1])
    x = x.reshape(batch, channels, height * up, width * up)
    x = functional.pad(x, list(padding))
    taps = (taps * up**2).flip([0, 1])[None, None].repeat([channels, 1, 1, 1])
    return functional.conv2d(x, taps, groups=channels)


def filter_taps() -> Tensor:
    """Return the filter of doubled pictures, [4, 4], with sum 1."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return line[:, None] * line / line.sum() ** 2


class ModulatedConv(nn.Module):
    """A convolution with weights of each sample's own, all samples at once as groups."""

    blur: Tensor

    def __init__(self, outputs: int, kernel: int, *, up: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.up, self.norm = up, norm
        self.affine = nn.Linear(W_DIM, 8)
        self.weight = nn.Parameter(torch.randn(outputs, 8, kernel, kernel))
        self.bias = nn.Parameter(0.1 * torch.randn(outputs))
        self.register_buffer("blur", filter_taps())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        batch, inputs, height, width = x.shape
        weight = self.weight[None] * (1 + self.affine(w)).reshape(batch, 1, inputs, 1, 1)
        if self.norm:
            weight = weight * (weight.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().reshape(
                batch, -1, 1, 1, 1
            )
        x = x.reshape(1, batch * inputs, height, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(batch * inputs, -1, *weight.shape[3:])
            x = functional.conv_transpose2d(x, weight, stride=2, groups=batch)
            x = upfirdn2d(x, self.blur, up=1, padding=(1, 1, 1, 1)) * 4
        else:
            weight = weight.reshape(-1, *weight.shape[2:])
            x = functional.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=batch)
        x = x.reshape(batch, -1, *x.shape[2:])
        return x + self.bias[None, :, None, None]


class Demodulated(nn.Module):
    """Modulated convolutions and summed skips (StyleGAN2, Karras et al. 2020)."""

    spec = make_spec(
        [z(8), w(4, W_DIM), noise(0, 8), noise(1, 16)],
        [image(16, 16)],
        [
            {"network": "mapping", "takes": ["z"], "gives": ["w"]},
            {"network": "synthesis", "takes": ["w", "noise_0", "noise_1"], "gives": ["image"]},
        ],
    )

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Mapping(4)
        self.constant = nn.Parameter(torch.randn(8, 8, 8))
        self.convs = nn.ModuleList([ModulatedConv(8, 3), ModulatedConv(8, 3, up=True)])
        self.to_rgb = nn.ModuleList([ModulatedConv(3, 1, norm=False) for _ in "ab"])
        self.strength = nn.Parameter(torch.tensor([0.3, 0.2]))
        self.register_buffer("blur", filter_taps())

    def synthesis(self, w: Tensor, *noises: Tensor) -> Tensor:
        ws = w.unbind(1)
        x = self.constant[None].repeat(w.shape[0], 1, 1, 1)
        x = _leaky(self.convs[0](x, ws[0]) + self.strength[0] * noises[0])
        picture: Any = self.to_rgb[0](x, ws[1])
        x = _leaky(self.convs[1](x, ws[2]) + self.strength[1] * noises[1])
        picture = upfirdn2d(picture, self.blur, up=2, padding=(2, 1, 2, 1))
        return torch.tanh(0.1 * (picture + self.to_rgb[1](x, ws[3])))

    def forward(self, z: Tensor, *noises: Tensor) -> Tensor:
        return self.synthesis(self.mapping(z), *noises)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2) * 2**0.5


class MultiConditional(nn.Module):
    """Several conditions, each of which may be any, and truncation to their own mean w.

    (Art Creation with Multi-Conditional StyleGANs, Dobler et al. 2022.)
    """

    spec = make_spec(
        [
            z(8),
            classes("any", "Monet", "Klee", name="painter"),
            classes("any", "portrait", "landscape", name="genre"),
            psi(),
        ],
        [image(16, 16)],
        [
            {"network": "mapping", "takes": ["z", "painter", "genre"], "gives": ["styles"]},
            {
                "network": "truncation",
                "takes": ["styles", "painter", "genre", "truncation_psi"],
                "gives": ["truncated"],
            },
            {"network": "synthesis", "takes": ["truncated"], "gives": ["image"]},
        ],
    )
    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.painters, self.genres = nn.Embedding(3, 4), nn.Embedding(3, 4)
        for embedding in (self.painters, self.genres):
            embedding.weight.data[0] = 0  # the wildcard, as the paper has it
        self.mapped = Mapping(1, 8 + 8)
        self.first = nn.Linear(W_DIM, 8 * 8 * 8)
        self.last = nn.ConvTranspose2d(8, 3, 4, 2, 1)
        with torch.no_grad():
            self.register_buffer("means", self.means_over(torch.randn(500, 8)))

    def means_over(self, z: Tensor) -> Tensor:
        """Return the mean w of each pair of conditions, [3, 3, w_dim]."""
        ones = torch.ones(len(z), dtype=torch.long)
        means = [self.mapping(z, i * ones, k * ones).mean(0) for i in range(3) for k in range(3)]
        return torch.stack(means).reshape(3, 3, W_DIM)

    def mapping(self, z: Tensor, painter: Tensor, genre: Tensor) -> Tensor:
        conditions = [self.painters(painter), self.genres(genre)]
        w: Tensor = self.mapped(torch.cat([z, *conditions], 1))
        return w[:, 0]

    def truncation(self, w: Tensor, painter: Tensor, genre: Tensor, psi: Tensor) -> Tensor:
        mean = self.means[painter, genre]
        return mean + psi[:, None] * (w - mean)

    def synthesis(self, w: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.relu(self.first(w).reshape(-1, 8, 8, 8))))

    def forward(self, z: Tensor, painter: Tensor, genre: Tensor, psi: Tensor) -> Tensor:
        w = self.mapping(z, painter, genre)
        return self.synthesis(self.truncation(w, painter, genre, psi))
