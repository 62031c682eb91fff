"""``[inputs]`` of a job's file: numbers, classes, vectors, the same for all or drawn; pictures."""

import json
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Discriminator,
    Tag,
    field_validator,
    model_validator,
)

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.vector import VectorInput
from latentry.contract.seeds import draw_uniform
from latentry.contract.strict import Strict
from latentry.contract.values.ranges import integers_from_text
from latentry.synthesis.sources.folders import Folder
from latentry.synthesis.sources.listing import PictureFolder
from latentry.synthesis.sources.webdataset import WebDataset

_RANGE = re.compile(r"[0-9_]*( *- *[0-9_]*)?")  # or what was meant for one
_HOW = (
    "give a number, the name of a class, a vector, { choice = [0, 1] }, "
    '{ choice = "0-9" } or { uniform = [0.5, 1] }'
)


def _check_number(value: object) -> object:
    # Compared, as an integer that is beyond all floats cannot be asked whether it is finite.
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    ):
        return value
    raise ValueError(f"holds {shown_in_file(value)}; {_HOW}")


def _check_value(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(map(_check_number, value))
    return value if isinstance(value, str) else _check_number(value)


Number = Annotated[int | float, BeforeValidator(_check_number)]
FixedValue = int | float | str | tuple[int | float, ...]
Value = Annotated[FixedValue, BeforeValidator(_check_value)]
"""A number, or the name of a class; where several are allowed also a range, "0-9"; or a vector."""


class Uniform(Strict):
    """An input drawn for each sample from its seed, evenly between two numbers.

    Each number of a vector is drawn by itself.
    """

    uniform: tuple[Number, Number]

    @model_validator(mode="after")
    def _runs_upwards(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform = {list(self.uniform)} runs backwards; [low, high]")
        return self

    def check(self, item: InputKind) -> None:
        """Check that the input takes both ends; raises BadRequest."""
        if isinstance(item, ClassInput):
            raise BadRequest(
                f"{item.name} is drawn with choice, as classes have no order: "
                f'{item.name} = {{ choice = "0-{len(item.classes) - 1}" }}'
            )
        if isinstance(item, VectorInput):
            for end in self.uniform:
                _vector_of(item, (end,) * item.size)
        else:
            check_numbers(item, self.uniform)

    def rows(self, item: InputKind, seeds: NDArray[np.int64]) -> NDArray[Any]:
        """Return the input's values for samples with these seeds."""
        shape = (item.size,) if isinstance(item, VectorInput) else ()
        return self.draw(item, draw_uniform(seeds, _purpose(item), shape))

    def draw(self, item: InputKind, drawn: NDArray[np.float64]) -> NDArray[Any]:
        """Return the input's values for numbers in [0, 1); integers have both ends."""
        low, high = self.uniform
        if not _takes_integers(item):
            values: NDArray[Any] = (low + (high - low) * drawn).astype(item.dtype)
            return values
        low, high = int(low), int(high)
        # In Python's integers: where a range is far from 0, a float has not room for all of it.
        count = high - low + 1
        return np.array([min(high, low + int(count * part)) for part in drawn], item.dtype)


class Choice(Strict):
    """An input drawn for each sample from its seed, each of several values as likely."""

    choice: tuple[Value, ...]

    @field_validator("choice", mode="before")
    @classmethod
    def _may_be_one_text(cls, value: object) -> object:
        if value == []:
            raise ValueError("holds []; give at least one value")
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    def check(self, item: InputKind) -> None:
        """Check that the input takes all values; raises BadRequest."""
        if isinstance(item, VectorInput):
            self._values(item)
        else:
            check_numbers(item, self._numbers(item))

    def rows(self, item: InputKind, seeds: NDArray[np.int64]) -> NDArray[Any]:
        """Return the input's values for samples with these seeds."""
        return self.draw(item, draw_uniform(seeds, _purpose(item)))

    def draw(self, item: InputKind, drawn: NDArray[np.float64]) -> NDArray[Any]:
        """Return the input's values for numbers in [0, 1), one a sample."""
        values = self._values(item)
        return values[(drawn * len(values)).astype(np.int64)]

    def _values(self, item: InputKind) -> NDArray[Any]:
        """Return what is chosen from, [K] or vectors [K, size]."""
        if isinstance(item, VectorInput):
            return np.stack([_vector_of(item, value) for value in self.choice])
        return np.array(self._numbers(item), item.dtype)

    def _numbers(self, item: InputKind) -> list[int | float]:
        return [number for value in self.choice for number in numbers_of(item, value)]


def _kind_of(value: object) -> str:
    if isinstance(value, Uniform | Choice | PictureFolder):
        return type(value).__name__.lower()
    if isinstance(value, dict):
        kinds = ("uniform", "folder", "webdataset")
        return next((kind for kind in kinds if kind in value), "choice")
    return "fixed"


SaidInput = FixedValue | Uniform | Choice
"""What a job says of a number, class or vector: one value for all samples, or how it is drawn."""

JobInput = Annotated[
    Annotated[Value, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Folder, Tag("folder")]
    | Annotated[WebDataset, Tag("webdataset")],
    Discriminator(_kind_of),
]
"""What a job says of an input: as above, or where its pictures lie."""


def check_input(item: InputKind, value: SaidInput) -> None:
    """Check what a job says of a number, class or vector; raises BadRequest."""
    if isinstance(value, Uniform | Choice):
        value.check(item)
    elif isinstance(item, VectorInput):
        _vector_of(item, value)
    else:
        check_numbers(item, [_fixed_number(item, value)])


def check_numbers(item: InputKind, numbers: Sequence[int | float]) -> None:
    """Check numbers that an input gets; raises BadRequest naming the first that is not allowed."""
    if not _fit(item, numbers):
        bad = next(number for number in numbers if not _fit(item, [number]))
        raise BadRequest(f"{item.name} is {bad} in the job; it takes {item.allowed}")


def rows_of_input(item: InputKind, value: SaidInput, seeds: NDArray[np.int64]) -> NDArray[Any]:
    """Return an input's values for samples with these seeds, [N], or [N, size] of a vector."""
    if isinstance(value, Uniform | Choice):
        return value.rows(item, seeds)
    if isinstance(item, VectorInput):
        return np.tile(_vector_of(item, value), (len(seeds), 1))
    return np.full(len(seeds), _fixed_number(item, value), item.dtype)


def _purpose(item: InputKind) -> str:
    return f"job:{item.name}"


def _vector_of(item: VectorInput, value: FixedValue) -> NDArray[np.float32]:
    """Return the vector, float32 [size], that a value means; raises BadRequest for none."""
    if isinstance(value, int | float):
        raise BadRequest(
            f"{item.name} is {shown_in_file(value)} in the job; it takes {item.allowed}, as a list"
        )
    numbers = item.value_from_text(value) if isinstance(value, str) else value
    with np.errstate(over="ignore"):  # becomes infinity, which the check refuses
        row = np.asarray(numbers, np.float32)
    item.check(row[None])
    return row


def numbers_of(item: InputKind, value: FixedValue) -> Sequence[int | float]:
    """Return the numbers that a value means: itself, or a text's classes, integers and ranges.

    Raises:
        BadRequest: The text means nothing to this input, or it is a vector.
    """
    if isinstance(value, tuple):
        raise BadRequest(
            f"{item.name} is {shown_in_file(value)} in the job; it takes {item.allowed}: one for "
            "all samples, or { choice = [...] }, of which each draws one"
        )
    if not isinstance(value, str):
        return [value]
    if not isinstance(item, ClassInput):
        return [int(number) for number in integers_from_text(item.name, value)]
    if value in item.classes:  # a name may hold a comma
        return [item.classes.index(value)]
    names = [part.strip() for part in value.split(",")]
    if unknown := [n for n in names if n not in item.classes and not _RANGE.fullmatch(n)]:
        raise BadRequest(f"{item.name} has no class {unknown[0]!r}; it takes {item.allowed}")
    return [int(number) for number in np.asarray(item.value_from_text(value)).flat]


def _fixed_number(item: InputKind, value: FixedValue) -> int | float:
    if isinstance(value, str) and not isinstance(item, ClassInput):
        raise BadRequest(
            f"{item.name} is {shown_in_file(value)} in the job; it takes {item.allowed}"
        )
    numbers = numbers_of(item, value)
    if len(numbers) != 1:
        raise BadRequest(
            f'{item.name} = "{value}" names {len(numbers)} classes; give one, or '
            f'{{ choice = "{value}" }}, of which each sample draws one'
        )
    return numbers[0]


def _fit(item: InputKind, numbers: Sequence[int | float]) -> bool:
    """Whether an input takes all of these numbers."""
    try:
        if not _takes_integers(item):
            values = np.array(numbers, np.float64)
        elif all(isinstance(n, int) or _is_whole(item, n) for n in numbers):
            values = np.array([int(n) for n in numbers], item.dtype)
        else:
            return False
        with np.errstate(over="ignore"):  # becomes infinity, which the check refuses
            item.check(values.astype(item.dtype)[:, None])
    except (BadRequest, OverflowError):
        return False
    return True


def _is_whole(item: InputKind, number: float) -> bool:
    return number == int(number) and not isinstance(item, ClassInput)


def _takes_integers(item: InputKind) -> bool:
    return bool(np.issubdtype(item.dtype, np.integer))


def shown_in_file(value: object) -> str:
    """Return a value out of a job's file as messages show it: at most 60 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
