"""What every filter is: options out of the job's file, and a judge of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from latentry.contract.images import Uint8
from latentry.contract.strict import Strict


@dataclass(frozen=True)
class Candidates:
    """Samples that are judged together, in the order of the shard.

    Attributes:
        images: The main pictures, uint8 [N, H, W, C]; of samples without one [N, 0, 0, 1].
        seeds: int64 [N].
        inputs: Every number, class and vector in effect, by name, [N] or [N, size].
        labels: The class that was asked for, int64 [N]; None where there are no classes.
        sha256: Hexadecimal SHA-256 of each sample.
        seen: Those of all samples of the shard that were judged before; for filters to add to.
    """

    images: Uint8
    seeds: NDArray[np.int64]
    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    sha256: Sequence[str]
    seen: set[str]


class Filter(Protocol):
    """Judges samples; what it knows of a shard is in the batches."""

    def judge(self, candidates: Candidates) -> Sequence[str | None]:
        """Return for each sample None, or the reason why it is rejected."""
        ...


class JudgeOptions(Strict):
    """What a job's file says of something that judges samples, or looks at them."""

    needs_picture: ClassVar[bool] = True
    """Whether it looks at the main picture."""

    def files(self) -> list[Path]:
        """Return the files on which the verdict depends."""
        return []
