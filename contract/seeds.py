"""The seed contract: a seed is an integer 0 .. 2^32-1, belongs to one sample, fixes its latents.

``z = RandomState(seed).randn(z_dim).astype(float32)`` is StyleGAN's convention (``gen_images.py``
of NVlabs/stylegan3); NumPy keeps the RandomState stream frozen (NEP 19), so a seed draws the same
z on every machine and with every NumPy.
"""

import hashlib
import secrets
import struct
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.latent import LatentInput

SEED_CONTRACT: Literal[1] = 1
MAX_SEED = 2**32 - 1

_ALLOWED = f"a seed is an integer from 0 to {MAX_SEED}"


def check_seed(seed: object) -> int:
    """Return ``seed`` as an int.

    Raises:
        BadRequest: It is a bool, not an integer, or outside 0 .. 2^32-1.
    """
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer):
        raise BadRequest(f"seed {seed!r} is a {type(seed).__name__}; {_ALLOWED}")
    if not 0 <= seed <= MAX_SEED:
        raise BadRequest(f"seed {seed} is out of range; {_ALLOWED}")
    return int(seed)


def check_seeds(seeds: object) -> NDArray[np.int64]:
    """Return ``seeds`` (one integer or several) as int64 [N], each of them checked.

    Raises:
        BadRequest: There is none, or one of them is no seed.
    """
    if isinstance(seeds, np.ndarray) and not isinstance(seeds, np.ma.MaskedArray):
        if seeds.dtype == np.int64 and seeds.ndim == 1 and seeds.size:
            return _check_int64(seeds)
        seeds = seeds.tolist()  # a list of ints is checked ten times faster than NumPy scalars
    if isinstance(seeds, str | bytes | bytearray | memoryview) or not isinstance(seeds, Iterable):
        return np.array([check_seed(seeds)], np.int64)
    checked = [check_seed(seed) for seed in seeds]
    if not checked:
        raise BadRequest("no seeds were given; give at least one, such as seeds=range(8)")
    return np.array(checked, np.int64)


def _check_int64(seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    outside = (seeds < 0) | (seeds > MAX_SEED)
    if outside.any():
        check_seed(seeds[outside][0])
    return seeds


def seed_range(first: int, count: int) -> NDArray[np.int64]:
    """Return the seeds ``first .. first + count - 1`` as int64 [count].

    Raises:
        BadRequest: ``count`` is below 1, or the range runs past 2^32-1 (it never wraps).
    """
    first = check_seed(first)
    if count < 1:
        raise BadRequest(f"count {count} is below 1; ask for at least one sample")
    if first + count - 1 > MAX_SEED:
        raise BadRequest(f"{count} seeds from {first} run past {MAX_SEED}; {_ALLOWED}")
    return np.arange(first, first + count, dtype=np.int64)


def draw_seeds(n: int) -> NDArray[np.int64]:
    """Return ``n`` seeds of the operating system's randomness, int64 [n].

    Raises:
        BadRequest: ``n`` is no integer or below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise BadRequest(f"n={n!r}; n is the number of samples, an integer from 1")
    return np.array([secrets.randbelow(MAX_SEED + 1) for _ in range(n)], np.int64)


def stream_words(purpose: str) -> tuple[int, int]:
    """Return the two words that set a sample's further stream of random numbers apart.

    ``RandomState([seed, a, b])`` is another stream than the seed's own, from which z is drawn.

    Args:
        purpose: What it is for, such as ``latent:noise`` or ``job:class_label``.

    Returns:
        The first two little-endian uint32 of the purpose's SHA-256.
    """
    digest = hashlib.sha256(purpose.encode()).digest()
    first, second = struct.unpack_from("<II", digest)
    return int(first), int(second)


def draw_uniform(
    seeds: Iterable[Any], purpose: str, row_shape: tuple[int, ...] = ()
) -> NDArray[np.float64]:
    """Return numbers in [0, 1), float64 [N, *row_shape], from a sample's stream for ``purpose``.

    Args:
        seeds: Integers 0 .. 2^32-1.
        purpose: As for :func:`stream_words`.
        row_shape: Shape of the numbers for each seed; one number by default.
    """
    state, words = np.random.RandomState(0), stream_words(purpose)
    drawn = []
    for seed in seeds:
        state.seed([int(seed), *words])
        drawn.append(state.random_sample(row_shape))
    return np.array(drawn, np.float64).reshape(-1, *row_shape)


class LatentDrawer:
    """Draws one latent for seeds. One instance for a thread: it reuses one random state.

    The latent called ``z`` has the seed's own stream, ``RandomState(seed)``; any other has
    ``RandomState([seed, a, b])`` with the words of ``latent:NAME``.

    Building a RandomState gathers entropy (0.12 ms); reseeding one costs 0.005 ms and gives the
    same stream.
    """

    def __init__(self, item: LatentInput) -> None:
        self._item = item
        self._words = () if item.name == "z" else stream_words(f"latent:{item.name}")
        self._state = np.random.RandomState(0)

    def draw(self, seeds: Iterable[Any]) -> NDArray[np.float32]:
        """Return float32 [N, *shape], one row per seed."""
        rows = []
        for seed in seeds:
            self._state.seed([int(seed), *self._words] if self._words else int(seed))
            rows.append(self._draw_one())
        return np.array(rows, np.float32).reshape(len(rows), *self._item.shape)

    def _draw_one(self) -> NDArray[np.float64]:
        item = self._item
        if item.distribution == "uniform":
            span = item.maximum - item.minimum
            drawn = item.minimum + span * self._state.random_sample(item.shape)
            # As float32 some would be rounded up to the maximum, which torch.rand never gives.
            below = np.nextafter(np.float32(item.maximum), np.float32(item.minimum))
            return np.minimum(drawn, np.float64(below))
        row: NDArray[np.float64] = self._state.randn(*item.shape)
        if item.distribution == "truncated_normal":
            # What is too large is drawn again, in its order, until nothing is.
            while (beyond := np.abs(row) > item.bound).any():
                row[beyond] = self._state.randn(int(beyond.sum()))
        return row
