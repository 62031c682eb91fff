"""What every kind of input and of output knows of itself; kinds of others come by entry points.

An installed package adds a kind with an entry point of the group ``latentry.kinds`` whose object is
a class derived from :class:`InputKind` or :class:`OutputKind`. A spec names kinds by a word only:
nothing in an entry says which code to import.
"""

import hashlib
import keyword
import math
import operator
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, FiniteFloat

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.strict import Strict

RESERVED = frozenset(
    (
        *("seed", "seeds", "n", "count", "index", "model", "format", "chunk_size", "outputs"),
        *("resume", "resize", "timeout_s", "self", "watch"),
        *("version", "model_digest", "build", "build_digest", "engine_class"),
    )
)
"""Words that requests, and what is said of a sample in its file, use for something else."""

_MOST_NAME = 64

Size = Literal["least", "largest"]

Dimension = Annotated[int, Field(ge=1, le=65536)]

_MOST_FLOAT32 = float(np.finfo(np.float32).max)
Float32 = Annotated[FiniteFloat, Field(ge=-_MOST_FLOAT32, le=_MOST_FLOAT32)]
"""A number that stays finite as float32."""


def _checked_name(name: str) -> str:
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no Python identifier")
    if name in RESERVED or len(name) > _MOST_NAME:
        raise ValueError(
            f"{name!r} is reserved, or longer than {_MOST_NAME}; reserved are "
            f"{', '.join(sorted(RESERVED))}"
        )
    return name


TensorName = Annotated[str, AfterValidator(_checked_name)]


FREE = -1
"""In a row's shape: an axis whose length differs from request to request."""


class TensorType(NamedTuple):
    """Element type and the shape of one sample's row; bytes objects have ``object_``.

    Attributes:
        dtype: Element type.
        row_shape: Shape of a row, with :data:`FREE` for free axes.
        largest: The largest shape of a row, where an axis is free.
    """

    dtype: type[np.generic]
    row_shape: tuple[int, ...]
    largest: tuple[int, ...] = ()

    def fits(self, row_shape: tuple[int, ...]) -> bool:
        """Whether a row may have this shape."""
        return does_fit(row_shape, self.row_shape) and (
            not self.largest or all(map(operator.le, row_shape, self.largest))
        )

    @property
    def most_bytes(self) -> int:
        """What a row takes, at most."""
        return math.prod(self.largest or self.row_shape) * np.dtype(self.dtype).itemsize


def does_fit(shape: tuple[int, ...], pattern: tuple[int, ...]) -> bool:
    """Whether ``shape`` is as ``pattern`` says, where that is not free."""
    return len(shape) == len(pattern) and all(
        length in (FREE, found) for found, length in zip(shape, pattern, strict=True)
    )


def shown_shape(shape: tuple[int, ...]) -> str:
    """Return a shape for people, free axes as ``any``."""
    return f"[{', '.join('any' if length == FREE else str(length) for length in shape)}]"


def sized(shape: tuple[int, ...]) -> str:
    """Return a shape for people as ``32 x 32 x 3``, free axes as ``any``."""
    return " x ".join("any" if length == FREE else str(length) for length in shape)


class InputKind(Strict):
    """One named input of a generator.

    Attributes:
        kind: Names the kind.
        name: Names the tensor.
    """

    dtype: ClassVar[type[np.generic]] = np.float32

    kind: str
    name: TensorName

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one sample's row of the tensor."""
        return (1,)

    @property
    def example_row_shape(self) -> tuple[int, ...]:
        """Shape of the rows of :meth:`examples`: ``row_shape`` where no axis is free."""
        return self.row_shape

    @property
    def largest_row_shape(self) -> tuple[int, ...]:
        """The largest shape of a row."""
        return self.row_shape

    def at(self, size: Size) -> Self:
        """Return this input with free axes fixed at one end of their range."""
        return self

    @property
    def allowed(self) -> str:
        """One line for people: what values this input takes."""
        raise NotImplementedError

    @property
    def distribution_to_draw(self) -> str:
        """How a seed draws this input; empty where it is never drawn."""
        return ""

    @property
    def must_matter(self) -> bool:
        """Whether an export is refused when this input has no effect; others only warn."""
        return False

    def default_row(self) -> NDArray[Any] | None:
        """Return the row [*row_shape] of a request that leaves this input out; None: required."""
        return None

    def check(self, values: NDArray[Any]) -> None:
        """Check ``values`` [N, *row_shape].

        Raises:
            BadRequest: Naming the first bad row, what it holds and what is allowed.
        """
        if values.dtype != self.dtype:
            raise BadRequest(f"{self.name} has dtype {values.dtype}; it takes {self.allowed}")
        if not does_fit(values.shape[1:], self.row_shape):
            raise BadRequest(
                f"{self.name} has rows of shape {list(values.shape[1:])}; "
                f"it takes rows of shape {shown_shape(self.row_shape)}: {self.allowed}"
            )
        bad = self.find_bad(values)
        if bad is not None and bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise BadRequest(
                f"{self.name} in row {index[0]} is {values[index]}; it takes {self.allowed}"
            )

    def find_bad(self, values: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return where ``values`` [N, *row_shape] are not allowed; None: all values are."""
        return None

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return what a caller gave as rows [N, *row_shape], and whether it is one for all samples.

        Args:
            value: What was given.
            most: An iterable is read up to this many rows.

        Raises:
            BadRequest: It is none of what this input takes.
        """
        raise NotImplementedError

    def value_from_text(self, text: str) -> Any:
        """Return what ``text``, typed after ``--set NAME=``, means to :meth:`rows_from_value`.

        A list holds values that are gone through in turn, one a sample.

        Raises:
            BadRequest: It means nothing.
        """
        raise NotImplementedError

    def examples(self, count: int) -> NDArray[Any]:
        """Return ``count`` different rows where there are as many, spread over what is allowed."""
        raise NotImplementedError

    def text(self, row: NDArray[Any]) -> str:
        """Return what a picture's file says of a row: its value, or the hash of a large one."""
        return "sha256:" + hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()

    def stem(self, row: NDArray[Any]) -> str:
        """Return what the name of a picture's file says of a row; empty for nothing."""
        return ""

    def to_network(self, rows: Any) -> Any:
        """Return what the module's forward gets for a torch tensor of rows [N, *row_shape].

        By methods of the tensor alone, since there is no torch in this room. What is one number,
        and no vector of one, comes as [N].
        """
        return rows[:, 0] if self.row_shape == (1,) else rows


class OutputKind(Strict):
    """One named output of a generator; attributes as of :class:`InputKind`."""

    kind: str
    name: TensorName

    def tensors(self, image_format: Format) -> Mapping[str, TensorType]:
        """Return the tensors by which it travels in this format."""
        raise NotImplementedError

    def check_format(self, image_format: Format) -> None:
        """Check that it can travel in this format; raises BadRequest."""

    @property
    def network_shape(self) -> tuple[int | None, ...]:
        """Shape of one sample of what the module's forward gives; None for any size."""
        raise NotImplementedError

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return the raw tensors [N, ...], and with ``.sample`` the network's own, of a forward.

        ``output`` is a torch tensor [N, *network_shape]; as :meth:`InputKind.to_network`.
        """
        raise NotImplementedError

    def encode(self, row: NDArray[Any], image_format: Format) -> bytes:
        """Return a raw row as a file, where this kind travels in files."""
        raise NotImplementedError

    def file_format(self, image_format: Format) -> Format:
        """Return of which format the files are that :meth:`encode` makes."""
        return image_format

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether raw rows of two engine classes are as near as they must be."""
        raise NotImplementedError

    def psnr(self, found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
        """Return how like each raw row [N, ...] is to the expected one: [N], infinite where equal.

        Peak signal-to-noise ratio in decibels; the peak is 255 of pixels, and of floats the largest
        absolute value of the expected row, or 1 where that is less.
        """
        wanted = expected.reshape(len(expected), -1).astype(np.float64)
        error = np.square(found.reshape(wanted.shape) - wanted).mean(axis=1)
        peak = np.full(len(wanted), 255.0)
        if expected.dtype != np.uint8:
            peak = np.abs(wanted).max(axis=1, initial=1.0)
        with np.errstate(divide="ignore"):
            ratio: NDArray[np.float64] = 10 * np.log10(np.square(peak) / error)
        return ratio

    def find_constant(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for each raw row whether it is of one value throughout, as no output may be."""
        return np.zeros(len(rows), np.bool_)

    @property
    def raw(self) -> TensorType:
        """The tensor of its own name."""
        return self.tensors(Format.RAW)[self.name]

    def row_bytes(self, image_format: Format) -> int:
        """Return how much one sample takes, at most; encoded files count as raw."""
        tensors = self.tensors(Format.RAW if image_format.encoded else image_format).values()
        return sum(kind.most_bytes for kind in tensors)
