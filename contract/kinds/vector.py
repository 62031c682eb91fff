"""Vectors: attributes or class weights going in, features coming out."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import Dimension, Float32, InputKind, OutputKind, TensorType
from latentry.contract.values.arrays import numbers

_SHOWN = 20
_UNBOUNDED = 1e30


class VectorInput(InputKind):
    """Several numbers, float32 [n].

    Attributes:
        size: How many.
        entries: Their names, in order; may be left out.
        minimum: Least value of each.
        maximum: Largest value of each.
        default: Values of a request that leaves it out; None: it is required.
    """

    kind: Literal["vector"] = "vector"
    size: Dimension
    entries: tuple[str, ...] = ()
    minimum: Float32 = -_UNBOUNDED
    maximum: Float32 = _UNBOUNDED
    default: tuple[Float32, ...] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.entries and len(self.entries) != self.size:
            raise ValueError(f"entries names {len(self.entries)} numbers, size is {self.size}")
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        if self.default is not None:
            row = np.array(self.default, np.float32)
            if row.shape != (self.size,) or self.find_bad(row).any():
                raise ValueError(f"default must be {self.allowed}")
        return self

    @property
    def row_shape(self) -> tuple[int, ...]:
        """(size,)."""
        return (self.size,)

    @property
    def allowed(self) -> str:
        """One line for people."""
        more = ", ..." if self.size > _SHOWN else ""
        names = f" ({', '.join(self.entries[:_SHOWN])}{more})" if self.entries else ""
        is_bounded = self.minimum > -_UNBOUNDED or self.maximum < _UNBOUNDED
        ends = f" from {self.minimum:g} to {self.maximum:g}" if is_bounded else ""
        return f"{self.size} finite numbers a sample{ends}{names}"

    def default_row(self) -> NDArray[Any] | None:
        """Return ``default``."""
        return None if self.default is None else np.array(self.default, np.float32)

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are outside the range, or no numbers."""
        return ~np.logical_and(values >= self.minimum, values <= self.maximum)

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of [size], one for all samples, or of [N, size]."""
        array = numbers(self.name, value, self.allowed, most=max(most, self.size) + 1)
        return (array[None], True) if array.ndim == 1 else (array, False)

    def value_from_text(self, text: str) -> Any:
        """Return the numbers of ``0.1,0,0.9``, or of ``smiling=1,beard=0.2`` by their names.

        By name, those that are not named are as in the default, or 0.
        """
        try:
            if "=" not in text:
                return np.array([float(part) for part in text.split(",")])
            row = self.default_row()
            row = np.zeros(self.size, np.float32) if row is None else row
            named: set[str] = set()
            for part in text.split(","):
                name, _, number = part.partition("=")
                if name.strip() in named:
                    raise BadRequest(f"{self.name} names {name.strip()} twice in {text!r}")
                named.add(name.strip())
                row[self.entries.index(name.strip())] = float(number)
        except ValueError:
            raise BadRequest(f"{self.name} holds {text!r}; it takes {self.allowed}") from None
        return row

    def to_network(self, rows: Any) -> Any:
        """Return them as they are, a row of one number as well."""
        return rows

    def examples(self, count: int) -> NDArray[np.float32]:
        """Return numbers within the range, around its middle where it has one."""
        drawn = np.random.RandomState(1).random_sample((count, self.size))
        low, high = max(self.minimum, -1.0), min(self.maximum, 1.0)
        if low >= high:  # the range lies far from 0
            low, high = self.minimum, self.maximum
        return (low + (high - low) * drawn).astype(np.float32)

    def text(self, row: NDArray[Any]) -> str:
        """Return the numbers, or the hash of many."""
        if self.size > _SHOWN:
            return super().text(row)
        return ",".join(str(number) for number in row)


class VectorOutput(OutputKind):
    """Features: float32 [n], always raw.

    Attributes:
        size: How many numbers.
    """

    kind: Literal["vector"] = "vector"
    size: Annotated[int, Field(ge=1, le=2**24)]

    @property
    def network_shape(self) -> tuple[int | None, ...]:
        """[size]."""
        return (self.size,)

    def tensors(self, image_format: Format) -> Mapping[str, TensorType]:
        """Return itself in every format."""
        return {self.name: TensorType(np.float32, (self.size,))}

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return it as it is."""
        return {self.name: output}

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether floats are within 1e-4 of the largest value."""
        return are_near(found, expected)


def are_near(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether floats of two engine classes are within 1e-4 of the largest value, or of 1.

    What is not finite is near to nothing.
    """
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    apart = np.abs(found.astype(np.float64) - expected).max(initial=0)
    return math.isfinite(scale) and bool(apart <= 1e-4 * scale)
