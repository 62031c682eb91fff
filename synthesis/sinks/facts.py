"""What shards say of the inputs of a sample: numbers, vectors, and the pictures that went in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.kinds.vector import VectorInput
from latentry.contract.spec import GeneratorSpec

# The longest path of a picture that a sample was made of, in characters.
MOST_PATH = 1000

_SHA256_CHARACTERS = 64
_MOST_ESCAPED = 12  # bytes of a character in JSON
_MOST_NUMBER = 26  # bytes of a number in JSON
_MOST_FLOAT = float(np.finfo(np.float32).max)


def is_said(item: InputKind) -> bool:
    """Whether a job says an input of every sample: a class, a number, an integer, a vector."""
    if isinstance(item, VectorInput):
        return True
    # A latent of one number is given as an array all the same.
    return item.row_shape == (1,) and not isinstance(item, LatentInput)


def said_inputs(spec: GeneratorSpec) -> list[InputKind]:
    """Return the inputs that a job says, and that reach the model's outputs from a seed."""
    return [item for item in spec.route(frozenset()).inputs if is_said(item)]


def picture_inputs(spec: GeneratorSpec) -> list[PixelsInput]:
    """Return the inputs that are pictures, masks or label maps; a job has folders of them."""
    return [item for item in spec.route(frozenset()).inputs if isinstance(item, PixelsInput)]


def path_name(name: str) -> str:
    """Return what the path of a picture's file is called, that goes into the input ``name``."""
    return f"{name}_path"


def hash_name(name: str) -> str:
    """Return what the hash of a picture's file is called, that goes into the input ``name``."""
    return f"{name}_sha256"


@dataclass(frozen=True)
class Facts:
    """What is said of the inputs of every sample of a model."""

    spec: GeneratorSpec

    @cached_property
    def numbers(self) -> dict[str, type[np.generic]]:
        """Element types of the inputs of one number, by name."""
        items = said_inputs(self.spec)
        return {item.name: item.dtype for item in items if not isinstance(item, VectorInput)}

    @cached_property
    def vectors(self) -> dict[str, int]:
        """How many numbers, float32, the vectors have, by name."""
        items = said_inputs(self.spec)
        return {item.name: item.size for item in items if isinstance(item, VectorInput)}

    @cached_property
    def texts(self) -> dict[str, tuple[int, int]]:
        """The least and largest length of the texts, by name."""
        lengths = {}
        for item in picture_inputs(self.spec):
            lengths[path_name(item.name)] = (1, MOST_PATH)
            lengths[hash_name(item.name)] = (_SHA256_CHARACTERS, _SHA256_CHARACTERS)
        return lengths

    @cached_property
    def most_bytes(self) -> int:
        """What texts and vectors of one sample may take, however they are written."""
        texts = sum(_MOST_ESCAPED * most for _, most in self.texts.values())
        return texts + _MOST_NUMBER * sum(self.vectors.values())

    def read(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a sample out of anybody's file.

        Raises:
            ValueError: They are none.
        """
        return {name: self._value(name, value) for name, value in found.items()}

    def _value(self, name: str, value: Any) -> Any:
        if name in self.texts:
            return _checked_text(value, *self.texts[name])
        if name in self.vectors:
            return _checked_vector(value, self.vectors[name])
        return _checked_number(value)


def value_for_json(value: Any) -> int | float | str | list[int | float]:
    """Return an input's value as it is written for people."""
    if isinstance(value, np.ndarray):
        return [number_from_scalar(number) for number in value]
    return value if isinstance(value, str) else number_from_scalar(value)


def number_from_scalar(value: Any) -> int | float:
    """Return a number as it is written for people."""
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return float(str(value)) if isinstance(value, np.floating) else int(value)


def _checked_number(value: Any) -> int | float:
    most = _MOST_FLOAT if isinstance(value, float) else 2**63 - 1
    if not isinstance(value, int | float) or not -most - 1 <= value <= most:
        raise ValueError("an input is no number that any model takes")
    return value


def _checked_text(value: Any, least: int, most: int) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise ValueError("the file of an input is no path, or its hash none")
    return value


def _checked_vector(value: Any, size: int) -> NDArray[np.float32]:
    if not isinstance(value, list) or len(value) != size:
        raise ValueError(f"an input is no vector of {size} numbers")
    return np.array([_checked_number(number) for number in value], np.float32)
