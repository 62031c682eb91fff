"""Specs in few words, for tests: their parts as a spec's JSON has them."""

from collections.abc import Sequence
from typing import Any

from latentry.contract.spec import GeneratorSpec

Part = dict[str, Any]

PIXELS_16: Part = {"height": 16, "width": 16}


def make_spec(
    inputs: Sequence[Part], outputs: Sequence[Part], stages: Sequence[Part] = ()
) -> GeneratorSpec:
    """Return the spec of these parts."""
    return GeneratorSpec.model_validate(
        {"inputs": list(inputs), "outputs": list(outputs), "stages": list(stages)}
    )


def z(*shape: int, **more: Any) -> Part:
    """Return the latent z."""
    return {"name": "z", "kind": "latent", "shape": list(shape), **more}


def w(*shape: int) -> Part:
    """Return the latent w, which a stage makes or a caller gives."""
    return {"name": "w", "kind": "latent", "shape": list(shape), "distribution": "none"}


def classes(*names: str, name: str = "class_label") -> Part:
    """Return a class of these names."""
    return {"name": name, "kind": "class", "classes": list(names)}


def psi(**more: Any) -> Part:
    """Return truncation_psi, from -2 to 2 and 1 if left out."""
    limits = {"minimum": -2.0, "maximum": 2.0, "default": 1.0, **more}
    return {"name": "truncation_psi", "kind": "number", **limits}


def image(height: int, width: int, channels: int = 3, **more: Any) -> Part:
    """Return a picture called image."""
    size = {"height": height, "width": width, "channels": channels}
    return {"name": "image", "kind": "picture", **size, **more}


def stages_of_stylegan(
    w_avg: Sequence[float], *, mapping_takes: Sequence[str] = ("z", "class_label")
) -> list[Part]:
    """Return a mapping network, truncation and a synthesis network."""
    truncate = {"operation": "truncate", "w_avg": list(w_avg)}
    return [
        {"network": "mapping", "takes": list(mapping_takes), "gives": ["w"]},
        {**truncate, "takes": ["w", "truncation_psi"], "gives": ["w_truncated"]},
        {"network": "synthesis", "takes": ["w_truncated"], "gives": ["image"]},
    ]
