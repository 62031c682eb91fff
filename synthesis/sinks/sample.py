"""One sample of a shard, and what all formats say of it alike."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.images import Uint8
from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.kinds.vector import VectorInput
from latentry.contract.spec import GeneratorSpec

# The largest feature vector.
MOST_FEATURES = 2**20
# The longest path of a picture that a sample was made of, in characters.
MOST_PATH = 1000

COLUMNS = frozenset(("index", "seed", "model_digest", "sha256", "image", "images", "features"))
"""What shards say of a sample beside the inputs; no input can be called like one of them."""

_SHA256_CHARACTERS = 64
_MOST_ESCAPED = 12  # bytes of a character in JSON
_MOST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Sample:
    """One accepted sample as it goes into a shard.

    Attributes:
        index: Its place in the whole job.
        seed: What it was drawn from.
        inputs: Every input of one number in effect, by name; of a picture the path of its file in
            the job's folder, and as ``NAME_sha256`` the hash of its bytes.
        sha256: Hexadecimal SHA-256 of its pixels, uint8 [H, W, C].
        data: The image as it is written: a file's bytes, raw pixels, or empty.
        features: float32 [D]; empty where none are written.
    """

    index: int
    seed: int
    inputs: Mapping[str, Any]
    sha256: str
    data: bytes
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def pixel_sha256(image: Uint8) -> str:
    """Return the SHA-256 of the pixels of uint8 [H, W, C], as in the goldens."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def is_one_number(item: InputKind) -> bool:
    """Whether a job says an input of every sample: a class, a number, an integer."""
    # A latent or a vector of one number is given as an array all the same.
    return item.row_shape == (1,) and not isinstance(item, LatentInput | VectorInput)


def one_number_inputs(spec: GeneratorSpec) -> list[InputKind]:
    """Return the inputs of one number that reach the model's pictures from a seed."""
    return [item for item in spec.route(frozenset()).inputs if is_one_number(item)]


def input_types(spec: GeneratorSpec) -> dict[str, type[np.generic]]:
    """Return the element types of the inputs of one number, which are said of every sample."""
    return {item.name: item.dtype for item in one_number_inputs(spec)}


def picture_inputs(spec: GeneratorSpec) -> list[PixelsInput]:
    """Return the inputs that are pictures, masks or label maps; a job has folders of them."""
    return [item for item in spec.route(frozenset()).inputs if isinstance(item, PixelsInput)]


def hash_name(name: str) -> str:
    """Return what the hash of a picture's file is called, that goes into the input ``name``."""
    return f"{name}_sha256"


def text_lengths(spec: GeneratorSpec) -> dict[str, tuple[int, int]]:
    """Return the least and largest length of the texts that are said of every sample, by name."""
    lengths = {}
    for item in picture_inputs(spec):
        lengths[item.name] = (1, MOST_PATH)
        lengths[hash_name(item.name)] = (_SHA256_CHARACTERS, _SHA256_CHARACTERS)
    return lengths


def most_text_bytes(spec: GeneratorSpec) -> int:
    """Return what the texts of one sample may take, however they are written."""
    return sum(_MOST_ESCAPED * most for _, most in text_lengths(spec).values())


def scalar_for_json(value: Any) -> int | float | str:
    """Return an input's value as it is written for people."""
    return value if isinstance(value, str) else number_from_scalar(value)


def number_from_scalar(value: Any) -> int | float:
    """Return an input's value as it is written for people."""
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return float(str(value)) if isinstance(value, np.floating) else int(value)


def number_from_json(value: Any) -> int | float:
    """Return an input's value out of anybody's file; raises ValueError for none."""
    most = _MOST_FLOAT if isinstance(value, float) else 2**63 - 1
    if not isinstance(value, int | float) or not -most - 1 <= value <= most:
        raise ValueError("an input is no number that any model takes")
    return value


def inputs_from_json(
    found: Mapping[str, Any], lengths: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """Return the inputs of a sample out of anybody's file, texts being of these lengths.

    Raises:
        ValueError: They are none.
    """
    return {
        key: _text_from_json(value, *lengths[key]) if key in lengths else number_from_json(value)
        for key, value in found.items()
    }


def _text_from_json(value: Any, least: int, most: int) -> str:
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise ValueError("the file of an input is no path, or its hash none")
    return value


def columns_of(samples: Sequence[Sample]) -> dict[str, NDArray[Any]]:
    """Return the numbers and texts that are said of samples, by name, [N] each."""
    names = samples[0].inputs if samples else ()
    return {
        "index": np.array([sample.index for sample in samples], np.int64),
        "seed": np.array([sample.seed for sample in samples], np.int64),
        **{name: np.array([sample.inputs[name] for sample in samples]) for name in names},
    }
