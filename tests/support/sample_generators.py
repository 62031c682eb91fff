"""Generators of the tests, as a user's own package would hold them: small, untrained, different."""

from collections.abc import Callable
from typing import Any, NamedTuple

import exporting.operators  # noqa: F401
import torch
from torch import Tensor, nn

from latentry.contract.spec import GeneratorSpec


class Wide(nn.Module):
    """z [N, 16] -> RGB 48 x 80: not square, three channels, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16 * 6 * 10)
        self.body = nn.Sequential(
            nn.ConvTranspose2d(16, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        sample: Tensor = self.body(self.first(z).reshape(-1, 16, 6, 10))
        return sample


class Mapping(nn.Module):
    """z [N, 12] and a class -> w [N, 3, 20]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 12)
        self.layers = nn.Sequential(nn.Linear(24, 20), nn.LeakyReLU(0.2), nn.Linear(20, 20))

    def forward(self, z: Tensor, class_label: Tensor) -> Tensor:
        w: Tensor = self.layers(torch.cat([z, self.embedding(class_label)], dim=1))
        return w[:, None].expand(-1, 3, -1)


class Synthesis(nn.Module):
    """w [N, 3, 20] -> grey 24 x 24, each layer modulated by its own row of w."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.styles = nn.ModuleList(nn.Linear(20, 8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.to_image = nn.Conv2d(8, 1, 1)

    def forward(self, w: Tensor) -> Tensor:
        x = self.start.expand(w.shape[0], -1, -1, -1)
        for index, (style, conv) in enumerate(zip(self.styles, self.convs, strict=True)):
            x = torch.relu(conv(x * (1 + style(w[:, index]))[:, :, None, None]))
            if index < 2:
                x = nn.functional.interpolate(x, scale_factor=2.0)
        return torch.tanh(self.to_image(x))


class Mapped(nn.Module):
    """A conditional generator with a mapping network, as StyleGAN's are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = Mapping()
        self.synthesis = Synthesis()


class Large(nn.Module):
    """z [N, 8] -> RGB 256 x 256, with hardly any computation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 3 * 8 * 8)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, 3, 8, 8)
        return torch.tanh(nn.functional.interpolate(x, scale_factor=32.0, mode="bilinear"))


class Breaking(nn.Module):
    """z [N, 4] -> grey 8 x 8, NaN where z[0] is below -3: one seed in 740."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 64)

    def forward(self, z: Tensor) -> Tensor:
        sample = torch.tanh(self.first(z)).reshape(-1, 1, 8, 8)
        broken = (z[:, :1] < -3.0).reshape(-1, 1, 1, 1)
        return torch.where(broken, torch.full_like(sample, torch.nan), sample)


class Editor(nn.Module):
    """z [N, 6] and RGB 24 x 20 in -> RGB and grey 24 x 20, a mask, and 5 features.

    NaN in the grey one where z[0] is below -3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(6, 8)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.to_picture = nn.Conv2d(8, 3, 1)
        self.to_grey = nn.Conv2d(8, 1, 1)
        self.to_mask = nn.Conv2d(8, 1, 1)

    def forward(self, z: Tensor, photo: Tensor, strength: Tensor) -> tuple[Tensor, ...]:
        style = self.style(z)[:, :, None, None]
        x = torch.relu(self.first(photo) + strength[:, None, None, None] * style)
        picture, grey = torch.tanh(self.to_picture(x)), torch.tanh(self.to_grey(x))
        broken = (z[:, :1] < -3.0).reshape(-1, 1, 1, 1)
        grey = torch.where(broken, torch.full_like(grey, torch.nan), grey)
        mask = torch.sigmoid(4 * self.to_mask(x))
        features = x[:, :5].mean(dim=(2, 3))
        return picture, grey, mask, features


class Small(nn.Module):
    """z [N, 8] -> grey 4 x 6 around one function of module and z, to show one fault each."""

    def __init__(self, function: Callable[["Small", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(8, 24)
        self.function = function

    def forward(self, z: Tensor) -> Any:
        return self.function(self, z)

    def draw(self, z: Tensor) -> Tensor:
        """Return what an honest generator would."""
        sample: Tensor = self.linear(z).reshape(-1, 1, 4, 6)
        return sample.tanh()


class Exported(NamedTuple):
    """A generator, its spec and its graphs (file name to ONNX bytes)."""

    module: nn.Module
    spec: GeneratorSpec
    files: dict[str, bytes]


ExportSmall = Callable[[Callable[[Small, Tensor], Any]], Exported]
"""Exports a :class:`Small` around a function."""


def _seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(7)
    return make()


def build_wide() -> nn.Module:
    """Return a :class:`Wide` with fixed weights."""
    return _seeded(Wide)


def build_mapped() -> nn.Module:
    """Return a :class:`Mapped` with fixed weights."""
    return _seeded(Mapped)


def build_large() -> nn.Module:
    """Return a :class:`Large` with fixed weights."""
    return _seeded(Large)


def build_breaking() -> nn.Module:
    """Return a :class:`Breaking` with fixed weights."""
    return _seeded(Breaking)


def build_editor() -> nn.Module:
    """Return an :class:`Editor` with fixed weights."""
    return _seeded(Editor)
