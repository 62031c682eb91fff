"""Which kinds there are: ours, and those of installed packages (group ``latentry.kinds``)."""

import json
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import ValidationError

from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.kind import InputKind, OutputKind
from latentry.contract.kinds.label_map import LabelMapInput, LabelMapOutput
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.mask import MaskInput, MaskOutput
from latentry.contract.kinds.numbers import IntegerInput, NumberInput
from latentry.contract.kinds.picture import PictureInput, PictureOutput
from latentry.contract.kinds.tensor import TensorOutput
from latentry.contract.kinds.vector import VectorInput, VectorOutput
from latentry.contract.strict import explain

K = TypeVar("K", InputKind, OutputKind)

GROUP = "latentry.kinds"
_INPUTS: dict[str, type[InputKind]] = {
    "latent": LatentInput,
    "class": ClassInput,
    "number": NumberInput,
    "integer": IntegerInput,
    "vector": VectorInput,
    "picture": PictureInput,
    "mask": MaskInput,
    "label_map": LabelMapInput,
}
_OUTPUTS: dict[str, type[OutputKind]] = {
    "picture": PictureOutput,
    "mask": MaskOutput,
    "label_map": LabelMapOutput,
    "vector": VectorOutput,
    "tensor": TensorOutput,
}


def input_from_any(value: Any) -> InputKind:
    """Return the input that a spec declares; raises ValueError, as pydantic's validators do."""
    return value if isinstance(value, InputKind) else _from_any(value, _INPUTS, InputKind)


def output_from_any(value: Any) -> OutputKind:
    """Return the output that a spec declares; raises ValueError."""
    return value if isinstance(value, OutputKind) else _from_any(value, _OUTPUTS, OutputKind)


def _from_any(value: Any, ours: dict[str, type[K]], base: type[K]) -> K:
    if not isinstance(value, dict):
        raise ValueError("must be an object with name and kind")
    word = value.get("kind")
    if word is None and "role" in value:
        raise ValueError(
            "has a role, as in Latentry 0.4 and before; it has a kind now, such as "
            f"{', '.join(ours)} (docs/contract.md, The spec)"
        )
    # Others are looked for only where a word is unknown: it reads a file of every package.
    kind = ours.get(word) if isinstance(word, str) else None
    kind = kind or (_kinds_of_others(base).get(word) if isinstance(word, str) else None)
    if kind is None:
        known = ", ".join([*ours, *_kinds_of_others(base)])
        raise ValueError(f"kind {word!r} is unknown; use one of {known}")
    try:
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        name, why = value.get("name"), explain(error)
        if any(item["type"] == "extra_forbidden" for item in error.errors()):
            why += f" (a {word} has {', '.join(kind.model_fields)})"
        raise ValueError(f"{name}: {why}" if name else why) from error


def _kinds_of_others(base: type[K]) -> dict[str, type[K]]:
    return {
        name: kind
        for name, kind in _loaded().items()
        if isinstance(kind, type) and issubclass(kind, base)
    }


@cache
def _loaded() -> dict[str, Any]:
    return {entry.name: entry.load() for entry in entry_points(group=GROUP)}
