"""Generators that take and give more than z and a picture, and their export."""

from pathlib import Path

import exporting.operators  # noqa: F401
import torch
from specs import classes, image, make_spec, z
from torch import Tensor, nn

from latentry.contract.spec import GeneratorSpec
from latentry.export.publish import Source, export_generator


class Steered(nn.Module):
    """z [N, 8], two classes, a number and an integer -> RGBA 16 x 12, a mask of it, 5 features."""

    def __init__(self) -> None:
        super().__init__()
        self.animal, self.colour = nn.Embedding(3, 8), nn.Embedding(4, 8)
        self.first = nn.Linear(8, 5 * 4 * 3)
        self.last = nn.Linear(8, 5)

    def forward(
        self, z: Tensor, class_label: Tensor, colour: Tensor, strength: Tensor, num_steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = z + self.animal(class_label) + strength[:, None] * self.colour(colour)
        x = x * (1 + 0.1 * num_steps[:, None])
        coarse = self.first(x).reshape(-1, 5, 4, 3)
        fine = torch.tanh(nn.functional.interpolate(coarse, scale_factor=4.0, mode="nearest"))
        return fine[:, :4], (fine[:, 4:] + 1) / 2, self.last(x)


class Restyled(nn.Module):
    """A picture -> a picture of the same size and channels, each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.colours = nn.Conv2d(channels, channels, 1)

    def forward(self, photo: Tensor) -> Tensor:
        return torch.tanh(self.colours(photo))


class Tinted(nn.Module):
    """RGB 16 x 12 and a number -> RGB 16 x 12; NaN where the first pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 3, 1)

    def forward(self, photo: Tensor, strength: Tensor) -> Tensor:
        sample = torch.tanh(self.colours(photo) + 0.3 * strength[:, None, None, None])
        broken = photo[:, :1, :1, :1] > 0.999
        return torch.where(broken, torch.full_like(sample, torch.nan), sample)


class Filled(nn.Module):
    """z [N, 4], RGB 16 x 12 and a mask -> RGB 16 x 12, where the mask is of z."""

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(4, 3)

    def forward(self, z: Tensor, photo: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(photo * (1 - mask) + self.style(z)[:, :, None, None] * mask)


class Embedded(nn.Module):
    """z [N, 8] -> 16 features, and no picture."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 16)

    def forward(self, z: Tensor) -> Tensor:
        features: Tensor = self.last(z)
        return features


EMBEDDED = make_spec([z(8)], [{"name": "features", "kind": "vector", "size": 16}])
STEERED = make_spec(
    [
        z(8),
        classes("cat", "dog", "emu"),
        classes("red", "green", "sea, dark", "sea, light", name="colour"),
        {"name": "strength", "kind": "number", "minimum": 0.0, "maximum": 2.0, "default": 1.0},
        {"name": "num_steps", "kind": "integer", "minimum": 1, "maximum": 9, "default": 3},
    ],
    [
        image(16, 12, 4),
        {"name": "mask", "kind": "mask", "height": 16, "width": 12},
        {"name": "features", "kind": "vector", "size": 5},
    ],
)


PHOTO = {**image(16, 12), "name": "photo"}
TINTED = make_spec(
    [PHOTO, {"name": "strength", "kind": "number", "minimum": 0.0, "maximum": 2.0, "default": 1.0}],
    [image(16, 12)],
)
FILLED = make_spec(
    [z(4), PHOTO, {"name": "mask", "kind": "mask", "height": 16, "width": 12}], [image(16, 12)]
)


def spec_of_restyled(height: int, width: int, channels: int) -> GeneratorSpec:
    """Return the spec of a :class:`Restyled` for pictures of this size."""
    part = image(height, width, channels)
    return make_spec([{**part, "name": "photo"}], [part])


def export(folder: Path, name: str, spec: GeneratorSpec, module: nn.Module, batch: int = 8) -> None:
    """Publish a generator in the repository ``folder``."""
    source = Source(name, spec, module.eval(), name, "0" * 64)
    export_generator(source, folder, max_batch_size=batch)


def export_steered(folder: Path) -> None:
    """Publish ``steered``."""
    torch.manual_seed(3)
    export(folder, "steered", STEERED, Steered(), batch=16)


def export_embedded(folder: Path) -> None:
    """Publish ``embedded``."""
    torch.manual_seed(3)
    export(folder, "embedded", EMBEDDED, Embedded())


def export_tinted(folder: Path) -> None:
    """Publish ``tinted``."""
    torch.manual_seed(3)
    export(folder, "tinted", TINTED, Tinted())


def export_filled(folder: Path) -> None:
    """Publish ``filled``."""
    torch.manual_seed(3)
    export(folder, "filled", FILLED, Filled())


def export_restyled(folder: Path, name: str, height: int, width: int, channels: int) -> None:
    """Publish a generator from picture to picture."""
    torch.manual_seed(3)
    export(folder, name, spec_of_restyled(height, width, channels), Restyled(channels))
