"""Numbers: one of a range, with a default."""

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.classes import rows_of_scalars
from latentry.contract.kinds.kind import Float32, InputKind
from latentry.contract.values.arrays import integers, numbers
from latentry.contract.values.ranges import integers_from_text

_Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class _RangeInput(InputKind):
    """What both have in common."""

    minimum: Any
    maximum: Any
    default: Any = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if self.default is not None and not self.minimum <= self.default <= self.maximum:
            raise ValueError(f"default {self.default} is not from {self.minimum} to {self.maximum}")
        return self

    def default_row(self) -> NDArray[Any] | None:
        """Return ``default``."""
        return None if self.default is None else np.full((1,), self.default, self.dtype)

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are outside the range."""
        # Written so that NaN is bad: every comparison with it is false.
        inside: NDArray[np.bool_] = (values >= self.minimum) & (values <= self.maximum)
        return ~inside

    def text(self, row: NDArray[Any]) -> str:
        """Return the number."""
        return str(row[0])

    def stem(self, row: NDArray[Any]) -> str:
        """Return ``psi0.7``; empty for the default."""
        if self.default is not None and row[0] == self.dtype(self.default):
            return ""
        return f"{self.name.removeprefix('truncation_')}{row[0]!s}"


class NumberInput(_RangeInput):
    """A number, float32 [1], such as truncation_psi or guidance_scale.

    Attributes:
        minimum: Least value.
        maximum: Largest value.
        default: Value of a request that leaves it out; None: it is required.
    """

    kind: Literal["number"] = "number"
    minimum: Float32
    maximum: Float32
    default: Float32 | None = None

    @property
    def allowed(self) -> str:
        """One line for people."""
        default = "" if self.default is None else f", {self.default:g} if left out"
        return f"a number from {self.minimum:g} to {self.maximum:g}{default}"

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of one number for all samples, or of [N] or [N, 1]."""
        return rows_of_scalars(self.name, numbers(self.name, value, self.allowed, most=most + 1))

    def value_from_text(self, text: str) -> Any:
        """Return the number, or several gone through in turn, of ``0.7`` or ``0.5,0.7,1``."""
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError:
            raise BadRequest(f"{self.name} holds {text!r}; it takes {self.allowed}") from None
        return values[0] if len(values) == 1 else values

    def examples(self, count: int) -> NDArray[np.float32]:
        """Return the default, the middle below it, and both ends in turn."""
        default = self.maximum if self.default is None else self.default
        values = [default, (default + self.minimum) / 2, self.maximum, self.minimum]
        return np.resize(np.array(values, np.float32), count)[:, None]


class IntegerInput(_RangeInput):
    """An integer, int64 [1], such as truncation_cutoff or num_steps; as :class:`NumberInput`."""

    dtype: ClassVar[type[np.generic]] = np.int64

    kind: Literal["integer"] = "integer"
    minimum: _Int64
    maximum: _Int64
    default: _Int64 | None = None

    @property
    def allowed(self) -> str:
        """One line for people."""
        default = "" if self.default is None else f", {self.default} if left out"
        return f"an integer from {self.minimum} to {self.maximum}{default}"

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of one integer for all samples, or of [N] or [N, 1]."""
        return rows_of_scalars(self.name, integers(self.name, value, self.allowed, most=most + 1))

    def value_from_text(self, text: str) -> Any:
        """Return the integers, gone through in turn, of ``-3``, ``7`` or ``0-9,12``."""
        try:
            return integers_from_text(self.name, text).tolist()
        except BadRequest as error:
            raise BadRequest(f"{error}; it takes {self.allowed}") from None

    def examples(self, count: int) -> NDArray[np.int64]:
        """Return integers spread from the least to the largest."""
        spread = [
            self.minimum + (self.maximum - self.minimum) * i // max(1, count - 1)
            for i in range(count)
        ]
        return np.array(spread, np.int64)[:, None]
