"""``[inputs]`` of a job's file: inputs of one number, the same for all or drawn; and pictures."""

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
from latentry.contract.seeds import draw_uniform
from latentry.contract.strict import Strict
from latentry.contract.values.ranges import integers_from_text
from latentry.synthesis.sources.folders import Folder
from latentry.synthesis.sources.listing import PictureFolder
from latentry.synthesis.sources.webdataset import WebDataset

_RANGE = re.compile(r"[0-9_]*( *- *[0-9_]*)?")  # or what was meant for one
_HOW = (
    'give a number, the name of a class, { choice = [0, 1] }, { choice = "0-9" } or '
    "{ uniform = [0.5, 1] }"
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
    return value if isinstance(value, str) else _check_number(value)


Number = Annotated[int | float, BeforeValidator(_check_number)]
Value = Annotated[int | float | str, BeforeValidator(_check_value)]
"""A number, or the name of a class; where several are allowed also a range, "0-9"."""


class Uniform(Strict):
    """An input drawn for each sample from its seed, evenly between two numbers."""

    uniform: tuple[Number, Number]

    @model_validator(mode="after")
    def _runs_upwards(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform = {list(self.uniform)} runs backwards; [low, high]")
        return self

    def numbers(self, item: InputKind) -> Sequence[int | float]:
        """Return the numbers that have to be allowed."""
        if isinstance(item, ClassInput):
            raise BadRequest(
                f"{item.name} is drawn with choice, as classes have no order: "
                f'{item.name} = {{ choice = "0-{len(item.classes) - 1}" }}'
            )
        return self.uniform

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

    def numbers(self, item: InputKind) -> Sequence[int | float]:
        """Return the numbers to choose from."""
        return [number for value in self.choice for number in numbers_of(item, value)]

    def draw(self, item: InputKind, drawn: NDArray[np.float64]) -> NDArray[Any]:
        """Return the input's values for numbers in [0, 1)."""
        numbers = np.array(self.numbers(item), item.dtype)
        return numbers[(drawn * len(numbers)).astype(np.int64)]


def _kind_of(value: object) -> str:
    if isinstance(value, Uniform | Choice | PictureFolder):
        return type(value).__name__.lower()
    if isinstance(value, dict):
        kinds = ("uniform", "folder", "webdataset")
        return next((kind for kind in kinds if kind in value), "choice")
    return "fixed"


NumberInput = int | float | str | Uniform | Choice
"""What a job says of an input of one number: one value for all samples, or how it is drawn."""

JobInput = Annotated[
    Annotated[Value, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Choice, Tag("choice")]
    | Annotated[Folder, Tag("folder")]
    | Annotated[WebDataset, Tag("webdataset")],
    Discriminator(_kind_of),
]
"""What a job says of an input: as above, or where its pictures lie."""


def check_input(item: InputKind, value: NumberInput) -> None:
    """Check what a job says of an input of one number; raises BadRequest."""
    if isinstance(value, Uniform | Choice):
        check_numbers(item, value.numbers(item))
    else:
        check_numbers(item, [_fixed_number(item, value)])


def check_numbers(item: InputKind, numbers: Sequence[int | float]) -> None:
    """Check numbers that an input gets; raises BadRequest naming the first that is not allowed."""
    if not _fit(item, numbers):
        bad = next(number for number in numbers if not _fit(item, [number]))
        raise BadRequest(f"{item.name} is {bad} in the job; it takes {item.allowed}")


def rows_of_input(item: InputKind, value: NumberInput, seeds: NDArray[np.int64]) -> NDArray[Any]:
    """Return an input's values for samples with these seeds, [N]."""
    if isinstance(value, Uniform | Choice):
        return value.draw(item, draw_uniform(seeds, f"job:{item.name}"))
    return np.full(len(seeds), _fixed_number(item, value), item.dtype)


def numbers_of(item: InputKind, value: int | float | str) -> Sequence[int | float]:
    """Return the numbers that a value means: itself, or a text's classes, integers and ranges.

    Raises:
        BadRequest: The text means nothing to this input.
    """
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


def _fixed_number(item: InputKind, value: int | float | str) -> int | float:
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
