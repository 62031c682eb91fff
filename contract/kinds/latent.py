"""Latents: what a generator turns into a sample; drawn from the seed, or given."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.kind import Dimension, Float32, InputKind
from latentry.contract.values.arrays import numbers
from latentry.contract.values.npy import array_from_file

_MOST_NUMBERS = 2**24


class LatentInput(InputKind):
    """A latent such as z, w or the noise of a layer: float32 of any shape.

    Attributes:
        shape: Shape of one sample's latent.
        distribution: How a seed draws it: ``normal`` (mean 0, deviation 1), ``truncated_normal``
            (values beyond ``bound`` are drawn again), ``uniform`` (``minimum`` to ``maximum``), or
            ``none``: it is given by the caller, or made by a stage, as w is by a mapping network.
        bound: Largest absolute value of ``truncated_normal`` (2 in BigGAN, Brock et al. 2019).
        minimum: Least value of ``uniform``.
        maximum: Largest value of ``uniform``.
    """

    kind: Literal["latent"] = "latent"
    shape: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=6)]
    distribution: Literal["normal", "truncated_normal", "uniform", "none"] = "normal"
    bound: Annotated[Float32, Field(ge=0.1)] = 2.0
    minimum: Float32 = -1.0
    maximum: Float32 = 1.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if math.prod(self.shape) > _MOST_NUMBERS:
            raise ValueError(f"{list(self.shape)} are over {_MOST_NUMBERS} numbers")
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """``shape``."""
        return self.shape

    @property
    def distribution_to_draw(self) -> str:
        """``distribution``, empty for ``none``."""
        return "" if self.distribution == "none" else self.distribution

    @property
    def must_matter(self) -> bool:
        """A latent without effect is a mistake."""
        return True

    @property
    def allowed(self) -> str:
        """One line for people."""
        size = " x ".join(map(str, self.shape))
        drawn = self.distribution_to_draw.replace("_", " ")
        how = f" ({drawn})" if drawn else ""
        return f"{size} finite float32 numbers a sample{how}"

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are not finite."""
        bad: NDArray[np.bool_] = ~np.isfinite(values)
        return bad

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of an array [*shape], one for all samples, or [N, *shape]."""
        array = numbers(self.name, value, self.allowed, most=max(most, self.shape[0]) + 1)
        if array.shape == self.shape:
            return array[None], True
        if array.ndim != len(self.shape) + 1:
            raise BadRequest(
                f"{self.name} has shape {list(array.shape)}; it takes {list(self.shape)}, or "
                f"{['N', *self.shape]} for N samples".replace("'", "")
            )
        return array, False

    def value_from_text(self, text: str) -> Any:
        """Return the array in the NPY file that ``text`` names."""
        return array_from_file(self.name, Path(text))

    def to_network(self, rows: Any) -> Any:
        """Return them as they are, a row of one number as well."""
        return rows

    def examples(self, count: int) -> NDArray[np.float32]:
        """Return normal numbers; rows that are drawn have seeds instead."""
        rows = np.random.RandomState(0).randn(count, *self.shape).astype(np.float32)
        if self.distribution == "uniform":
            return np.clip(rows, self.minimum, self.maximum).astype(np.float32)
        return rows
