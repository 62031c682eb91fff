"""One sample of a shard, and what all formats say of it alike."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.images import Uint8
from latentry.contract.spec import Role

# The largest feature vector.
MOST_FEATURES = 2**20
CONTROLS = {Role.CLASS_LABEL.value, Role.TRUNCATION_PSI.value}


@dataclass(frozen=True)
class Sample:
    """One accepted sample as it goes into a shard.

    Attributes:
        index: Its place in the whole job.
        seed: What it was drawn from.
        controls: Every control in effect, by role.
        sha256: Hexadecimal SHA-256 of its pixels, uint8 [H, W, C].
        data: The image as it is written: a file's bytes, raw pixels, or empty.
        features: float32 [D]; empty where none are written.
    """

    index: int
    seed: int
    controls: Mapping[str, Any]
    sha256: str
    data: bytes
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def pixel_sha256(image: Uint8) -> str:
    """Return the SHA-256 of the pixels of uint8 [H, W, C], as in the goldens."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def number_from_scalar(value: Any) -> int | float:
    """Return a control's value as it is written for people."""
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return float(str(value)) if isinstance(value, np.floating) else int(value)


def number_from_json(value: Any) -> int | float:
    """Return a control's value out of anybody's file; raises ValueError for none."""
    if not isinstance(value, int | float) or not -(2**63) <= value < 2**63:
        raise ValueError("a control is no number that any model takes")
    return value


def columns_of(samples: Sequence[Sample]) -> dict[str, NDArray[Any]]:
    """Return the numbers that are said of samples, by name, [N] each."""
    names = samples[0].controls if samples else ()
    return {
        "index": np.array([sample.index for sample in samples], np.int64),
        "seed": np.array([sample.seed for sample in samples], np.int64),
        **{name: np.array([sample.controls[name] for sample in samples]) for name in names},
    }
