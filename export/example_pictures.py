"""Pictures of a user's own that go into a model where it is calibrated and judged."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.files import read_regular
from latentry.contract.images import MOST_FILE_BYTES, SUFFIXES
from latentry.contract.kinds.picture import PixelsInput
from latentry.contract.spec import GeneratorSpec

_MOST_FILES = 10_000
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ExamplePictures:
    """Rows by the names of their inputs, [N, H, W, C] or [N, H, W].

    Attributes:
        calibrating: For calibration: every other file, from the first on.
        judging: For the gate: the others, so that it judges by none that it was made with.
    """

    calibrating: Mapping[str, NDArray[np.uint8]]
    judging: Mapping[str, NDArray[np.uint8]]


NONE = ExamplePictures({}, {})


def read_examples(spec: GeneratorSpec, folder: Path) -> ExamplePictures:
    """Return the pictures in a folder, scaled to what the model takes.

    Of a model with several inputs of pixels each has a folder of its name in it; files go in pairs
    by the order of their names. Where sizes are free, they are of the size of the model's own
    examples.

    Raises:
        BadRequest: The model takes no pictures; there are fewer than two; or a file is none.
    """
    items = [item for item in spec.inputs if isinstance(item, PixelsInput)]
    if not items:
        raise BadRequest(
            f"this model takes no pictures, so it needs no examples; it takes {spec.takes}"
        )
    places = (
        {items[0].name: folder} if len(items) == 1 else {i.name: folder / i.name for i in items}
    )
    files = {name: _files(place) for name, place in places.items()}
    row_bytes = sum(math.prod(item.example_row_shape) for item in items)
    count = min(_MOST_BYTES // row_bytes, *map(len, files.values()), _MOST_FILES)
    if count < 2:
        raise BadRequest(
            f"{folder} holds too few pictures: one half calibrates, the other judges; give two or "
            "more, better some hundred"
        )
    rows = {i.name: np.stack([*_rows(i, files[i.name][:count])]) for i in items}
    return ExamplePictures(
        {name: array[::2] for name, array in rows.items()},
        {name: array[1::2] for name, array in rows.items()},
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise BadRequest(f"{folder} cannot be read: {error.strerror}") from error


def _rows(item: PixelsInput, files: list[Path]) -> Iterator[NDArray[np.uint8]]:
    height, width = item.example_row_shape[:2]
    sized = item.model_copy(update={"height": height, "width": width})
    for path in files:
        try:
            (row,), _ = sized.resized_rows(read_regular(path, most=MOST_FILE_BYTES), most=1)
            item.check(row[None])
        except OSError as error:
            raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
        except BadRequest as error:
            raise BadRequest(f"{path}: {error}") from error
        yield row
