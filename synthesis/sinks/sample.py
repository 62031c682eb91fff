"""One sample of a shard, and what all formats say of it alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The largest feature vector.
MOST_FEATURES = 2**20
FEATURES = "features"
COLUMNS = frozenset(("index", "seed", "model_digest", "sha256", "image", "images", FEATURES))
"""What shards call something else; no input can be called so, nor an output but the main picture.

An output may be called ``features``, where the job adds none.
"""


@dataclass(frozen=True)
class Sample:
    """One accepted sample as it goes into a shard.

    Attributes:
        index: Its place in the whole job.
        seed: What it was drawn from.
        inputs: Every number, class and vector in effect, by name; of a picture ``NAME_path``, that
            of its file in the job's folder, and ``NAME_sha256``, the hash of its bytes.
        sha256: Hexadecimal SHA-256 of its outputs.
        data: Each output that is written, by what shards call it: a file's bytes, or raw numbers.
        features: float32 [D]; empty where none are written.
    """

    index: int
    seed: int
    inputs: Mapping[str, Any]
    sha256: str
    data: Mapping[str, bytes]
    features: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


def columns_of(samples: Sequence[Sample]) -> dict[str, NDArray[Any]]:
    """Return what is said of samples, by name: [N], or [N, size] of vectors."""
    names = samples[0].inputs if samples else ()
    return {
        "index": np.array([sample.index for sample in samples], np.int64),
        "seed": np.array([sample.seed for sample in samples], np.int64),
        **{name: np.array([sample.inputs[name] for sample in samples]) for name in names},
    }
