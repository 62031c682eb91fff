"""The Frechet distance between FP32's pictures and a build's, with its interval.

Of pictures by the same seeds, so that what the seeds themselves vary by falls out; and from
disjoint ranges of seeds, since drawing from one set again and again (the bootstrap) is biased.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentry.contract.images import Uint8

RANGES = 10
_SIDE = 8
_MOST_FEATURES = 32

Features = NDArray[np.float64]


def pixel_features(images: Uint8) -> Features:
    """Return pictures [N, H, W, C] as means of 8 x 8 cells of each channel: [N, at most 64 C]."""
    cells = images.astype(np.float64)
    for axis in (1, 2):
        length = cells.shape[axis]
        count = min(_SIDE, length)
        starts = np.arange(count) * length // count
        sizes = np.diff([*starts, length])
        shape = [1, 1, 1, 1]
        shape[axis] = count
        cells = np.add.reduceat(cells, starts, axis=axis) / sizes.reshape(shape)
    return cells.reshape(len(images), -1)


def main_directions(features: Features) -> Features:
    """Return the directions [D, K] in which features vary most, 32 of them at most."""
    _, _, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    kept: Features = directions[:_MOST_FEATURES].T
    return kept


def frechet_distance(first: Features, second: Features) -> float:
    """Return the Frechet distance between two sets of features [N, K], as Gaussians.

    Heusel et al. 2017, equation 6: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the
    root is found from the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
    """
    means = first.mean(axis=0) - second.mean(axis=0)
    one, other = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    return max(0.0, float(means @ means + np.trace(one) + np.trace(other) - 2 * shared))


@dataclass(frozen=True)
class Interval:
    """A mean over disjoint ranges of seeds, with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(first: Features, second: Features) -> Interval:
    """Return the distance between rows of the same seeds, over ten ranges of them."""
    parts = zip(np.array_split(first, RANGES), np.array_split(second, RANGES), strict=True)
    return interval_of([frechet_distance(*part) for part in parts])


def interval_of(values: Sequence[float]) -> Interval:
    """Return the mean of values with its 95 % interval (Student's t)."""
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, max(0.0, mean - half), mean + half)
