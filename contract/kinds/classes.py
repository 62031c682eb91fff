"""Classes: one of several named things to draw."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.kind import InputKind
from latentry.contract.values.arrays import converting, integers, replacing_texts
from latentry.contract.values.ranges import integers_from_text

_SHOWN = 20


class ClassInput(InputKind):
    """A class as an integer, int64 [1]; a caller may give its name.

    Attributes:
        classes: The classes' names, in order.
    """

    dtype: ClassVar[type[np.generic]] = np.int64

    kind: Literal["class"] = "class"
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]

    @property
    def allowed(self) -> str:
        """One line for people, with the classes' names where they say more than the number."""
        top = len(self.classes) - 1
        named = [f"{i}={name}" for i, name in enumerate(self.classes) if name != str(i)]
        if not named:
            return f"an integer from 0 to {top}"
        more = ", ..." if len(named) > _SHOWN else ""
        return f"an integer from 0 to {top}: {', '.join(named[:_SHOWN])}{more}"

    @property
    def must_matter(self) -> bool:
        """A class without effect is a mistake, where there are several."""
        return len(self.classes) > 1

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where ``values`` are no class."""
        return np.logical_or(values < 0, values >= len(self.classes))

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of one class for all samples, or [N] or [N, 1]; names are taken, too."""
        with converting(self.name, self.allowed):
            value = replacing_texts(value, self._number, most=most + 1)
        array = integers(self.name, value, self.allowed, most=most + 1)
        return rows_of_scalars(self.name, array)

    def value_from_text(self, text: str) -> Any:
        """Return the classes, gone through in turn, of ``7``, ``0-9,12`` or ``cat,dog``."""
        # A name may have commas of its own, as many of ImageNet's have.
        names = [text] if text in self._numbers else [part.strip() for part in text.split(",")]
        if any(name in self._numbers for name in names):
            return [self._number(name) for name in names]
        try:
            return integers_from_text(self.name, text).tolist()
        except BadRequest as error:
            raise BadRequest(f"{error}, or names; it takes {self.allowed}") from None

    def examples(self, count: int) -> NDArray[np.int64]:
        """Return classes spread from the first to the last."""
        spread = np.rint(np.linspace(0, len(self.classes) - 1, count))
        rows: NDArray[np.int64] = spread.astype(np.int64)[:, None]
        return rows

    def text(self, row: NDArray[Any]) -> str:
        """Return the number."""
        return str(row[0])

    def stem(self, row: NDArray[Any]) -> str:
        """Return ``class7``."""
        return f"{self.name.removesuffix('_label')}{row[0]}"

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The classes by their names; of two with one name, the first."""
        return {name: index for index, name in reversed(list(enumerate(self.classes)))}

    def _number(self, name: str) -> int:
        if (number := self._numbers.get(name)) is not None:
            return number
        raise BadRequest(f"{self.name} has no class {name!r}; it takes {self.allowed}")


def rows_of_scalars(name: str, array: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Return rows [N, 1] of one number, or of [N] or [N, 1]; and whether it is one for all.

    Raises:
        BadRequest: It has another shape.
    """
    if array.ndim == 0:
        return array.reshape(1, 1), True
    if array.ndim == 1 or array.shape[1:] == (1,):
        return array.reshape(len(array), 1), False
    raise BadRequest(
        f"{name} has shape {list(array.shape)}; give one value for all samples, or one for each"
    )
