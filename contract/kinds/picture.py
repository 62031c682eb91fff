"""Pictures: uint8 [H, W, C] at the edge, float32 [C, H, W] in a declared range in the network."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, ValidationError, model_validator

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import (
    FREE,
    Dimension,
    Float32,
    InputKind,
    OutputKind,
    Size,
    TensorType,
    does_fit,
)
from latentry.contract.strict import Strict, explain
from latentry.contract.values.arrays import converting, pixels, without_generators

_MAX_PIXELS = 4096 * 4096
_LEVELS = 255
_USUAL_SIDE = 64
MOST_SIDE = 65536
_CHANNELS = (1, 3, 4)


def _runs_upwards(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"{list(value)} runs backwards; [black, white], such as [-1, 1]")
    return value


Range = Annotated[tuple[Float32, Float32], AfterValidator(_runs_upwards)]
"""The network's values of black and of white."""


class SideRange(Strict):
    """A height or a width that a request chooses.

    Attributes:
        minimum: Least number of pixels.
        maximum: Largest number of pixels.
        multiple_of: What it must be a multiple of.
    """

    minimum: Dimension
    maximum: Dimension
    multiple_of: Dimension = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.minimum % self.multiple_of or self.maximum % self.multiple_of:
            raise ValueError(f"minimum and maximum must be multiples of {self.multiple_of}")
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum} is not below maximum {self.maximum}")
        return self

    def __str__(self) -> str:
        multiple = f" in steps of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"({self.minimum} to {self.maximum}{multiple})"

    @property
    def usual(self) -> int:
        """The size at which examples are made: 64 pixels, or what is nearest."""
        step = self.multiple_of
        return min(max(self.minimum, _USUAL_SIDE // step * step), self.maximum)

    def allows(self, side: int) -> bool:
        """Whether a picture may be that high or wide."""
        return self.minimum <= side <= self.maximum and side % self.multiple_of == 0

    def nearest(self, side: int) -> int:
        """Return the length nearest to ``side`` that a picture may have."""
        return min(
            max(self.minimum, round(side / self.multiple_of) * self.multiple_of), self.maximum
        )


def _side_from_any(value: Any) -> Any:
    """Return a side as a spec says it; raises ValueError, in one line for both of its forms."""
    if isinstance(value, SideRange):
        return value
    if isinstance(value, dict):
        try:
            return SideRange.model_validate(value)
        except ValidationError as error:
            raise ValueError(explain(error)) from error
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_SIDE:
        raise ValueError(
            f"{value!r} is no number of pixels from 1 to {MOST_SIDE}, and no range of them, "
            'such as {"minimum": 64, "maximum": 512}'
        )
    return value


Side = Annotated[int | SideRange, BeforeValidator(_side_from_any)]


def length_of(side: int | SideRange) -> int:
    """Return a side's length in a row's shape."""
    return FREE if isinstance(side, SideRange) else side


def nearest_to(side: int | SideRange, length: int) -> int:
    """Return the length nearest to ``length`` that a side may have."""
    return side.nearest(length) if isinstance(side, SideRange) else side


def most_of(side: int | SideRange) -> int:
    """Return the largest length of a side."""
    return side.maximum if isinstance(side, SideRange) else side


_ANY_SIDE = SideRange(minimum=1, maximum=MOST_SIDE)


class Sized(Strict):
    """What has a height and a width, of which each request chooses one where it is a range."""

    height: Side
    width: Side

    @model_validator(mode="after")
    def _size_is_served(self) -> Self:
        if most_of(self.height) * most_of(self.width) > _MAX_PIXELS:
            raise ValueError(f"{self.height} x {self.width} is over {_MAX_PIXELS} pixels")
        return self


def levels_from_sample(sample: Any, value_range: tuple[float, float]) -> Any:
    """Return what a network gives in ``value_range`` as float levels 0 .. 255, to be truncated.

    For [-1, 1] it is ``clamp(x * 127.5 + 128, 0, 255)``, as in StyleGAN3's ``gen_images.py``.
    """
    low, high = value_range
    scale = _LEVELS / (high - low)
    return (sample * scale + (0.5 - low * scale)).clamp(0, _LEVELS)


def sample_from_levels(levels: Any, value_range: tuple[float, float]) -> Any:
    """Return uint8 levels as the float32 that a network takes in ``value_range``."""
    low, high = value_range
    return levels.float() * ((high - low) / _LEVELS) + low


class PixelsInput(Sized, InputKind):
    """What pictures, masks and label maps that go in have in common: uint8.

    Attributes:
        height: In pixels, or a range of which each request chooses one for all of its samples.
        width: In pixels, likewise.
    """

    dtype: ClassVar[type[np.generic]] = np.uint8
    holds_labels: ClassVar[bool] = False

    def shape_of(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of a row of this size."""
        return height, width

    @property
    def row_shape(self) -> tuple[int, ...]:
        """That of a size, free axes where it is chosen by requests."""
        return self.shape_of(length_of(self.height), length_of(self.width))

    @property
    def example_row_shape(self) -> tuple[int, ...]:
        """That of the usual size."""
        sides = (
            side.usual if isinstance(side, SideRange) else side
            for side in (self.height, self.width)
        )
        return self.shape_of(*sides)

    @property
    def largest_row_shape(self) -> tuple[int, ...]:
        """That of the largest size."""
        return self.shape_of(most_of(self.height), most_of(self.width))

    def at(self, size: Size) -> Self:
        """Return it of the least or of the largest size."""
        ends = {
            name: side.minimum if size == "least" else side.maximum
            for name, side in (("height", self.height), ("width", self.width))
            if isinstance(side, SideRange)
        }
        return self.model_copy(update=ends)

    def check(self, values: NDArray[Any]) -> None:
        """Check ``values``, their size first where it is free; see :meth:`InputKind.check`."""
        if does_fit(values.shape[1:], self.row_shape):
            self.check_size(*values.shape[1:3])
        super().check(values)

    def check_size(self, height: int, width: int) -> None:
        """Raise BadRequest for pictures that are not as large as they must be."""
        for side, length in ((self.height, height), (self.width, width)):
            fits = side.allows(length) if isinstance(side, SideRange) else side == length
            if not fits:
                raise BadRequest(
                    f"{self.name} is a picture of {height} x {width}; it takes {self.allowed}; "
                    "scale it, or ask for that (resize=True, --resize, in a job resize = true)"
                )

    @property
    def colours(self) -> int:
        """Channels of the picture that a file of this input is decoded to."""
        return 1

    def rows_from_value(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows of one picture for all samples, or of several, one for each.

        A picture is a uint8 array of any library, a PIL image, a path (``os.PathLike``, no text)
        to a PNG, JPEG, WebP or BMP file, or such a file's bytes.
        """
        if isinstance(value, str):
            raise BadRequest(
                f"{self.name} is a text; for a file give a pathlib.Path, or its bytes; it takes "
                f"{self.allowed}"
            )
        if is_file_or_pil(value):
            return self._decoded(value)[None], True
        most = (
            max(most, most_of(self.height)) + 1
        )  # what is iterated may be the lines of one picture
        with converting(self.name, self.allowed):
            value = without_generators(value, most=most)
            if isinstance(value, Sequence) and any(map(is_file_or_pil, value[:most])):
                rows = [self.rows_from_value(item, most=1)[0] for item in value[:most]]
                return _together(self.name, rows), False
        return self._rows_of_array(pixels(self.name, value, self.allowed, most=most))

    def resized_rows(self, value: Any, *, most: int) -> tuple[NDArray[Any], bool]:
        """Return rows as :meth:`rows_from_value`, of pictures of any size, scaled to one it takes.

        Each side goes to the nearest length that is allowed, whatever becomes of the proportions.
        """
        from latentry.contract.images import resized

        if isinstance(value, Iterator):
            raise BadRequest(f"{self.name} is an iterator; to be scaled it has to be a list")
        if isinstance(value, Sequence) and any(map(self._is_one, islice(value, most))):
            ones = list(islice(value, most + 1))
            self._check_count(len(ones), most)
            return _together(self.name, [self.resized_rows(one, most=1)[0] for one in ones]), False
        of_any_size = self.model_copy(update={"height": _ANY_SIDE, "width": _ANY_SIDE})
        found, is_one = of_any_size.rows_from_value(value, most=most)
        of_any_size.check(found)
        self._check_count(len(found), most)
        if self.colours == 1 and found.shape[2] in _CHANNELS and not is_file_or_pil(value):
            raise BadRequest(
                f"{self.name} holds {len(found)} pictures of {found.shape[1]} x {found.shape[2]}, "
                f"which look like channels; it takes {self.allowed}"
            )
        height, width = (
            nearest_to(side, length)
            for side, length in zip((self.height, self.width), found.shape[1:3], strict=True)
        )
        if (height, width) == found.shape[1:3] or not len(found):
            return found, is_one
        rows = [resized(row, height, width, labels=self.holds_labels) for row in found]
        return np.stack(rows), is_one

    def _check_count(self, count: int, most: int) -> None:
        """Refuse too many pictures before they are scaled."""
        if count > most:
            raise BadRequest(f"{self.name} holds over {most:,} pictures, more than are drawn")

    def _is_one(self, value: Any) -> bool:
        """Whether it is one picture for sure: a file or PIL's, or an array with all of its axes."""
        axes = {len(self.row_shape), 2} if self.colours == 1 else {len(self.row_shape)}
        return is_file_or_pil(value) or getattr(value, "ndim", 0) in axes

    def value_from_text(self, text: str) -> Any:
        """Return the path, or the paths of ``a.png,b.png``."""
        if not all(text.split(",")):
            raise BadRequest(f"{self.name} holds {text!r}; give a picture's path, or a.png,b.png")
        paths = [Path(part) for part in text.split(",")]
        return paths[0] if len(paths) == 1 else paths

    def examples(self, count: int) -> NDArray[np.uint8]:
        """Return smooth pictures with noise: what networks for pictures are made for."""
        height, width = self.example_row_shape[:2]
        down, across = np.mgrid[0:height, 0:width].astype(np.float32)
        random = np.random.RandomState(2)
        rows = np.empty((count, height, width, self.colours), np.uint8)
        for index in range(count):
            for channel in range(self.colours):
                waves = random.uniform(0.02, 0.3, 2)
                wave = np.sin(across * waves[0] + random.uniform(0, 6)) + np.cos(down * waves[1])
                noise = random.normal(0, 8, wave.shape)
                rows[index, :, :, channel] = np.clip(128 + 55 * wave + noise, 0, 255)
        return rows.reshape(count, *self.example_row_shape)

    def text(self, row: NDArray[Any]) -> str:
        """Return the SHA-256 of the pixels."""
        return "sha256:" + hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()

    def _decoded(self, value: Any) -> NDArray[np.uint8]:
        # Here, as Pillow is slow to import, and the process of a stream does not need it.
        from latentry.contract.images import pixels_from_picture

        found = pixels_from_picture(
            self.name,
            value,
            self.colours,
            labels=self.holds_labels,
            check_size=self.check_size,
        )
        self.check_size(*found.shape[:2])
        return found.reshape(self.shape_of(*found.shape[:2]))

    def _rows_of_array(self, array: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
        """Return rows of [*row_shape] or [N, *row_shape]; a last axis of 1 may be left out."""
        if self.row_shape[-1:] == (1,) and array.shape[-1:] != (1,):
            array = array[..., None]
        if array.ndim == len(self.row_shape):
            return array[None], True
        return array, False


def _together(name: str, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    if len({row.shape for row in rows}) > 1:
        raise BadRequest(f"{name} holds pictures of several sizes; one request has one")
    return np.concatenate(rows)


def is_file_or_pil(value: Any) -> bool:
    """Whether it is a path, a file's bytes or a PIL image."""
    return isinstance(value, os.PathLike | bytes | bytearray) or hasattr(value, "getexif")


class PictureInput(PixelsInput):
    """A picture that goes in; attributes as of :class:`PixelsInput`.

    Attributes:
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        range: What the network's input has for black and for white.
    """

    kind: Literal["picture"] = "picture"
    channels: Literal[1, 3, 4]
    range: Range = (-1.0, 1.0)

    def shape_of(self, height: int, width: int) -> tuple[int, ...]:
        """Return (height, width, channels)."""
        return height, width, self.channels

    @property
    def colours(self) -> int:
        """``channels``."""
        return self.channels

    @property
    def must_matter(self) -> bool:
        """A picture without effect is a mistake."""
        return True

    @property
    def allowed(self) -> str:
        """One line for people."""
        return f"pictures of {self.height} x {self.width} x {self.channels}, uint8"

    def to_network(self, rows: Any) -> Any:
        """Return float32 [N, C, H, W] in ``range``."""
        return sample_from_levels(rows.permute(0, 3, 1, 2), self.range)


class PixelsOutput(Sized, OutputKind):
    """What pictures, masks and label maps that come out have in common: uint8 at the edge.

    Attributes:
        height: In pixels, or a range where it depends on what goes in.
        width: In pixels, likewise.
    """

    flat: ClassVar[bool] = True
    """Whether a row has no axis of channels at the edge."""

    @property
    def planes(self) -> int:
        """How many planes of float32 [H, W] the network gives for one sample."""
        return 1

    @property
    def network_shape(self) -> tuple[int | None, ...]:
        """[planes, height, width]."""
        return self.planes, *map(free_side, (self.height, self.width))

    def tensors(self, image_format: Format) -> Mapping[str, TensorType]:
        """Return ``X``, for ``float`` also what the network gives, ``X.sample``; ``X.encoded``."""
        size = (self.height, self.width)
        return pixel_tensors(self.name, size, (self.planes,), image_format, flat=self.flat)


class PictureOutput(PixelsOutput):
    """A picture that comes out: float32 [N, C, H, W] of the network, uint8 [H, W, C] at the edge.

    Attributes:
        channels: 1 for grey, 3 for RGB, 4 for RGBA.
        range: What the network gives for black and for white.
    """

    flat: ClassVar[bool] = False

    kind: Literal["picture"] = "picture"
    channels: Literal[1, 3, 4]
    range: Range = (-1.0, 1.0)

    @property
    def planes(self) -> int:
        """The channels."""
        return self.channels

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one uint8 picture, free axes where the size is free."""
        return length_of(self.height), length_of(self.width), self.channels

    def check_format(self, image_format: Format) -> None:
        """Refuse JPEG for RGBA."""
        if image_format is Format.JPEG and self.channels == 4:
            raise BadRequest(f"jpeg knows no transparency, which {self.name} has; use png or webp")

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return the levels, and the sample itself."""
        levels = levels_from_sample(output, self.range)
        return {self.name: levels.permute(0, 2, 3, 1).byte(), f"{self.name}.sample": output}

    def encode(self, row: NDArray[Any], image_format: Format) -> bytes:
        """Return a PNG, JPEG or WebP file."""
        from latentry.contract.images import encode_image

        return encode_image(row, image_format)

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether no element is more than one level off, and one in a thousand, or one, at all."""
        return are_levels_near(found, expected)

    def find_constant(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for each picture whether all of its pixels are equal."""
        flat = rows.reshape(len(rows), -1, rows.shape[-1])
        constant: NDArray[np.bool_] = (flat == flat[:, :1]).all(axis=(1, 2))
        return constant & (flat.shape[1] > 1)


def free_side(side: int | SideRange) -> int | None:
    """Return a side's length in what a network gives; None for any."""
    return None if isinstance(side, SideRange) else side


def pixel_tensors(
    name: str,
    size: tuple[int | SideRange, int | SideRange],
    channels: tuple[int, ...],
    image_format: Format,
    *,
    flat: bool = False,
) -> Mapping[str, TensorType]:
    """Return by which tensors pixels of a ``size`` (height, width) travel in a format.

    Args:
        name: Of the output.
        size: Height and width.
        channels: (C,) of what the network gives.
        image_format: The format.
        flat: Whether the raw pixels have no axis of channels.
    """
    if image_format.encoded:
        return {f"{name}.encoded": TensorType(np.object_, (1,))}
    lengths, most = tuple(map(length_of, size)), tuple(map(most_of, size))
    last = () if flat else channels
    raw_most = (*most, *last) if FREE in lengths else ()
    raw = {name: TensorType(np.uint8, (*lengths, *last), raw_most)}
    if image_format is Format.FLOAT:
        sample_most = (*channels, *most) if FREE in lengths else ()
        sample = TensorType(np.float32, (*channels, *lengths), sample_most)
        return {**raw, f"{name}.sample": sample}
    return raw


def are_levels_near(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether uint8 arrays of two engine classes, of one shape, are as near as they must be.

    No element differs by more than one level, and at most one in a thousand differs, or one
    (docs/contract.md). Within a class they are equal to the bit.
    """
    apart = np.abs(found.astype(np.int16) - expected)
    return bool(apart.max(initial=0) <= 1 and np.count_nonzero(apart) <= max(1, apart.size // 1000))
