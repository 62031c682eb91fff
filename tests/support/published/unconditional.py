"""Generators of noise alone, small and untrained, written as their papers' own code is."""

import torch
from specs import image, make_spec, z
from torch import Tensor, nn
from torch.nn import functional


class Convolutional(nn.Module):
    """Transposed convolutions with batch norm (DCGAN, Radford et al. 2016), at its 64 pixels."""

    spec = make_spec([z(12)], [image(64, 64)])

    def __init__(self) -> None:
        super().__init__()
        widths = (12, 16, 8, 8, 4)
        layers: list[nn.Module] = []
        for index, (wide, narrow) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            stride, padding = (2, 1) if index else (1, 0)
            layers += [
                nn.ConvTranspose2d(wide, narrow, 4, stride, padding, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())
        with torch.no_grad():  # else the running statistics are those of a net that never ran
            for _ in range(20):
                self(torch.randn(16, 12))

    def forward(self, z: Tensor) -> Tensor:
        sample: Tensor = self.layers(z[:, :, None, None])
        return sample


class GroupedBlock(nn.Module):
    """A residual block of R3GAN: no norm, and a grouped convolution between two of 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 16, 1, bias=False)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.last = nn.Conv2d(16, 8, 1, bias=False)
        self.biases = nn.ParameterList([nn.Parameter(0.1 * torch.randn(16, 1, 1)) for _ in "ab"])

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first(x) + self.biases[0], 0.2) * 2**0.5
        y = functional.leaky_relu(self.second(y) + self.biases[1], 0.2) * 2**0.5
        sum_: Tensor = x + self.last(y)
        return sum_


class GroupedResidual(nn.Module):
    """Residual blocks of grouped convolutions and filtered doubling (R3GAN, Huang et al. 2024)."""

    spec = make_spec([z(8)], [image(16, 16)])
    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(8, 4, 4))
        self.linear = nn.Linear(8, 8, bias=False)
        self.stages = nn.ModuleList(
            [nn.Sequential(GroupedBlock(), GroupedBlock()) for _ in range(3)]
        )
        self.last = nn.Conv2d(8, 3, 1, bias=False)
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        self.register_buffer("blur", (line[:, None] * line)[None, None])

    def forward(self, z: Tensor) -> Tensor:
        x = self.basis * self.linear(z).reshape(-1, 8, 1, 1)
        for index, stage in enumerate(self.stages):
            if index:
                blur = self.blur.expand(8, 1, 4, 4)
                x = functional.conv_transpose2d(x, blur, stride=2, padding=1, groups=8)
            x = stage(x)
        sample: Tensor = self.last(x)
        return sample


class SelfModulatedNorm(nn.Module):
    """Layer norm with scale and shift made from the latent (ViTGAN, section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale, self.shift = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        moved: Tensor = self.scale(style)[:, None] * self.norm(x) + self.shift(style)[:, None]
        return moved


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each behind a self-modulated norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([SelfModulatedNorm(width) for _ in "ab"])
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        y = self.norms[0](x, style)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        sum_: Tensor = x + self.perceptron(self.norms[1](x, style))
        return sum_


class Transformer(nn.Module):
    """A vision transformer whose patches are drawn by a network of sines (Lee et al. 2022)."""

    spec = make_spec([z(8)], [image(16, 16)])
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.positions = nn.Parameter(torch.randn(1, 16, 16))
        self.blocks = nn.ModuleList([TransformerBlock(16) for _ in range(2)])
        self.norm = SelfModulatedNorm(16)
        self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 3)
        grid = torch.linspace(-1, 1, 4)
        self.register_buffer("places", torch.cartesian_prod(grid, grid))

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z)
        x = self.positions.expand(z.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, style)
        patches = self.norm(x, style)[:, :, None] * torch.sin(3 * self.first(self.places))
        sample: Tensor = torch.tanh(self.last(torch.sin(patches)))
        return sample.reshape(-1, 4, 4, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 16, 16)


class Lifting(nn.Module):
    """A convolution from a picture to one plane for each turn: its kernel, turned four times."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.stack([torch.rot90(self.weight, k, (2, 3)) for k in range(4)], 1)
        return functional.conv2d(x, turned.flatten(0, 1), padding=1)


class OverTurns(nn.Module):
    """A convolution over the group of quarter turns: [N, C * 4, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        shape = (channels, channels, 4, 3, 3)
        self.weight = nn.Parameter(torch.randn(shape) / (36 * channels) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        turned = [torch.rot90(self.weight, k, (3, 4)).roll(k, 2) for k in range(4)]
        kernel = torch.stack(turned, 1).reshape(4 * self.channels, 4 * self.channels, 3, 3)
        return functional.conv2d(x, kernel, padding=1)


class Equivariant(nn.Module):
    """Turns as its latent does (Structure-preserving GANs, Birrell et al. 2022)."""

    spec = make_spec([z(4, 4, 4)], [image(16, 16)])

    def __init__(self) -> None:
        super().__init__()
        self.lifting = Lifting(4, 6)
        self.layers = nn.ModuleList([OverTurns(6) for _ in range(2)])
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.lifting(z))
        for layer in self.layers:
            x = torch.relu(layer(functional.interpolate(x, scale_factor=2.0)))
        pooled = x.reshape(x.shape[0], 6, 4, *x.shape[2:]).mean(2)
        return torch.tanh(3 * self.last(pooled))
