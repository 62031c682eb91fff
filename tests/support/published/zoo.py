"""Generators of many kinds, small and untrained, each with what it draws computed by hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import exporting.operators  # noqa: F401
import numpy as np
import torch
from numpy.typing import NDArray
from specs import Part, image, make_spec, z
from torch import Tensor, nn

from latentry.contract.spec import GeneratorSpec

Arrays = Mapping[str, NDArray[Any]]
HEIGHT, WIDTH = 12, 16


class Member(NamedTuple):
    """A generator of the zoo.

    ``by_hand`` returns the raw tensors of an answer, from rows of the inputs as they cross the
    wire with latents drawn, by plain PyTorch and NumPy.
    """

    spec: GeneratorSpec
    module: nn.Module
    by_hand: Callable[[Arrays], dict[str, NDArray[Any]]]


def picture(name: str = "image", channels: int = 3, **more: Any) -> Part:
    """Return a picture, in or out, of the zoo's size."""
    return {**image(HEIGHT, WIDTH, channels), "name": name, **more}


def pixels(kind: str, name: str, **more: Any) -> Part:
    """Return a mask or a label map, in or out, of the zoo's size."""
    return {"name": name, "kind": kind, "height": HEIGHT, "width": WIDTH, **more}


class Layers(nn.Module):
    """Modules with weights that are the same every time, around a function of their own."""

    def __init__(self, layers: Mapping[str, nn.Module], function: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function
        random = torch.Generator().manual_seed(11)
        for parameter in self.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.data = torch.randn(parameter.shape, generator=random) / fan**0.5
        self.eval().requires_grad_(False)

    def forward(self, *tensors: Tensor) -> Any:
        """Return what the function gives for the layers and the tensors."""
        return self.function(self.layers, *tensors)


def to_image(features: int) -> nn.Module:
    """Return layers from [N, features] to [N, 6, HEIGHT, WIDTH]."""
    return nn.Sequential(
        nn.Linear(features, 8 * 3 * 4),
        nn.Unflatten(1, (8, 3, 4)),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 6, 4, 2, 1),
    )


def conv(inputs: int, outputs: int) -> nn.Module:
    """Return a convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def restyle() -> Member:
    """Picture to picture, both called image."""
    module = Layers({"conv": conv(3, 3)}, lambda layers, x: torch.tanh(layers["conv"](x)))

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        return {"image": levels(module(signed(rows["image"])))}

    return Member(make_spec([picture()], [picture()]), module, by_hand)


def inpaint() -> Member:
    """A picture and a mask to a picture."""

    def forward(layers: nn.ModuleDict, x: Tensor, hole: Tensor) -> Tensor:
        filled = torch.tanh(layers["conv"](torch.cat([x * (1 - hole), hole], 1)))
        return torch.clamp(x * (1 - hole) + filled * hole, -1, 1)

    module = Layers({"conv": conv(4, 3)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        hole = torch.from_numpy(rows["hole"].astype(np.float32) / 255)[:, None]
        return {"image": levels(module(signed(rows["photo"]), hole))}

    inputs = [picture("photo"), pixels("mask", "hole")]
    return Member(make_spec(inputs, [picture()]), module, by_hand)


def scene() -> Member:
    """z to two pictures, one of them grey, and a mask."""

    def forward(layers: nn.ModuleDict, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = layers["body"](latent)
        return torch.tanh(x[:, :3]), torch.tanh(x[:, 3:4]), torch.sigmoid(x[:, 4:5])

    module = Layers({"body": to_image(6)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        image, depth, mask = module(torch.from_numpy(rows["z"]))
        return {
            "image": levels(image),
            "depth": levels(depth),
            "mask": (mask[:, 0] * 255 + 0.5).clamp(0, 255).byte().numpy(),
        }

    outputs = [picture(), picture("depth", 1), pixels("mask", "mask")]
    return Member(make_spec([z(6)], outputs), module, by_hand)


def features() -> Member:
    """z to a vector and a tensor, without any picture."""

    def forward(layers: nn.ModuleDict, latent: Tensor) -> tuple[Tensor, Tensor]:
        return layers["vector"](latent), layers["tensor"](latent).reshape(-1, 2, 3, 5)

    module = Layers({"vector": nn.Linear(6, 7), "tensor": nn.Linear(6, 30)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        vector, tensor = module(torch.from_numpy(rows["z"]))
        return {"embedding": vector.numpy(), "maps": tensor.numpy()}

    outputs: list[Part] = [
        {"name": "embedding", "kind": "vector", "size": 7},
        {"name": "maps", "kind": "tensor", "shape": [2, 3, 5]},
    ]
    return Member(make_spec([z(6)], outputs), module, by_hand)


def noisy() -> Member:
    """z and a latent of noise for each of two layers, drawn from the same seed."""

    def forward(layers: nn.ModuleDict, latent: Tensor, first: Tensor, second: Tensor) -> Tensor:
        x = layers["first"](layers["body"](latent)) + first * 0.3
        return torch.tanh(layers["second"](torch.relu(x)) + second * 0.1)

    module = Layers({"body": to_image(6), "first": conv(6, 4), "second": conv(4, 3)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        names = ("z", "noise_1", "noise_2")
        return {"image": levels(module(*(torch.from_numpy(rows[name]) for name in names)))}

    noises = [{**z(1, HEIGHT, WIDTH), "name": f"noise_{i}"} for i in (1, 2)]
    return Member(make_spec([z(6), *noises], [picture()]), module, by_hand)


def sticker() -> Member:
    """z with axes, [4, 8, 8], to RGBA in [0, 1]."""

    def forward(layers: nn.ModuleDict, latent: Tensor) -> Tensor:
        return torch.sigmoid(layers["conv"](latent))

    module = Layers({"conv": conv(4, 4)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        return {"image": levels(module(torch.from_numpy(rows["z"])), 0.0)}

    return Member(make_spec([z(4, 8, 8)], [image(8, 8, 4, range=[0, 1])]), module, by_hand)


def faces() -> Member:
    """z with float attributes, a number and an integer to a picture."""

    def forward(
        layers: nn.ModuleDict, latent: Tensor, attributes: Tensor, scale: Tensor, steps: Tensor
    ) -> Tensor:
        assert (scale.dim(), steps.dim(), steps.dtype) == (1, 1, torch.int64)
        x = layers["body"](torch.cat([latent, attributes], 1))[:, :3]
        return torch.tanh(x * scale[:, None, None, None] / steps[:, None, None, None])

    module = Layers({"body": to_image(6 + 3)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        single = [torch.from_numpy(rows[name][:, 0]) for name in ("guidance_scale", "num_steps")]
        double = [torch.from_numpy(rows[name]) for name in ("z", "attributes")]
        return {"image": levels(module(*double, *single))}

    names = ["smiling", "beard", "glasses"]
    ends = {"minimum": 0.0, "maximum": 1.0, "default": [0.0, 0.5, 1.0]}
    inputs = [
        z(6),
        {"name": "attributes", "kind": "vector", "size": 3, "entries": names, **ends},
        number("guidance_scale", "number", 1.0, 10.0, 4.0),
        number("num_steps", "integer", 1, 50, 2),
    ]
    return Member(make_spec(inputs, [picture()]), module, by_hand)


def number(name: str, kind: str, minimum: float, maximum: float, default: float) -> Part:
    """Return a number or an integer."""
    return {"name": name, "kind": kind, "minimum": minimum, "maximum": maximum, "default": default}


def segments() -> Member:
    """A label map to another one, with scores."""

    def forward(layers: nn.ModuleDict, labels: Tensor) -> Tensor:
        x: Tensor = layers["conv"](layers["embedding"](labels).permute(0, 3, 1, 2))
        return x

    module = Layers({"embedding": nn.Embedding(5, 4), "conv": conv(4, 3)}, forward)

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        scores = module(torch.from_numpy(rows["layout"].astype(np.int64))).numpy()
        return {"parts": scores.argmax(1).astype(np.uint8)}

    inputs = [pixels("label_map", "layout", labels=5)]
    return Member(make_spec(inputs, [pixels("label_map", "parts", labels=3)]), module, by_hand)


class Cascade(nn.Module):
    """Three networks: features of a picture, a picture of these, and what of it is the front."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Layers({"conv": conv(3, 4)}, lambda own, x: torch.relu(own["conv"](x)))
        self.decoder = Layers(
            {"conv": conv(5, 3)},
            lambda own, x, noise: torch.tanh(own["conv"](torch.cat([x, noise], 1))),
        )
        self.matting = Layers({"conv": conv(3, 1)}, lambda own, x: torch.sigmoid(own["conv"](x)))


def cascade() -> Member:
    """Networks in a row: of a tensor that is nobody else's, and of a picture that is given, too."""
    module = Cascade()

    def by_hand(rows: Arrays) -> dict[str, NDArray[Any]]:
        hidden = module.encoder(signed(rows["photo"]))
        image = module.decoder(hidden, torch.from_numpy(rows["noise"]))
        mask = (module.matting(image)[:, 0] * 255 + 0.5).clamp(0, 255).byte().numpy()
        return {"image": levels(image), "front": mask}

    stages = [
        {"network": "encoder", "takes": ["photo"], "gives": ["hidden"]},
        {"network": "decoder", "takes": ["hidden", "noise"], "gives": ["image"]},
        {"network": "matting", "takes": ["image"], "gives": ["front"]},
    ]
    inputs = [picture("photo"), {**z(1, HEIGHT, WIDTH), "name": "noise"}]
    outputs = [picture(), pixels("mask", "front")]
    return Member(make_spec(inputs, outputs, stages), module, by_hand)


ZOO: Sequence[Callable[[], Member]] = (
    *(restyle, inpaint, scene, features, noisy),
    *(sticker, faces, segments, cascade),
)


def signed(picture: NDArray[np.uint8]) -> Tensor:
    """Return uint8 [N, H, W, C] as float32 [N, C, H, W] from -1 to 1."""
    floats = picture.astype(np.float32) * np.float32(2 / 255) - 1
    return torch.from_numpy(np.ascontiguousarray(floats.transpose(0, 3, 1, 2)))


def levels(sample: Tensor, black: float = -1.0) -> NDArray[np.uint8]:
    """Return float32 [N, C, H, W], from ``black`` to 1, as uint8 [N, H, W, C]."""
    zero_to_one = (sample.numpy() - black) / (1 - black)
    scaled = np.clip(zero_to_one * 255 + 0.5, 0, 255).astype(np.uint8)
    return scaled.transpose(0, 2, 3, 1)
