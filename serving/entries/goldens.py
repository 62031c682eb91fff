"""Goldens: samples with known inputs and outputs that travel with an entry and prove a server.

On the engine class that made them, the outputs must be equal to the bit. On another CPU class a
correct engine differs by no more than rounding does, which each output's kind decides.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest, EntryError
from latentry.contract.files import read_regular
from latentry.contract.kinds.kind import OutputKind, TensorType
from latentry.contract.spec import GeneratorSpec
from latentry.contract.values.npy import read_npy
from latentry.contract.wire import Arrays, rows_from_request
from latentry.serving.entries.examples import example_tensors
from latentry.serving.entries.manifests import FP32, MOST_GOLDENS
from latentry.serving.entries.repository import Entry, read_entry

GOLDEN_FILE = "goldens.npz"
_ROOM = 64 * 2**10
_MOST_BYTES = 2**30
_USUAL = 8


@dataclass(frozen=True)
class Goldens:
    """Samples whose outputs are known.

    Attributes:
        inputs: The tensors of one request for all of them.
        outputs: The raw tensors of its answer.
    """

    inputs: Arrays
    outputs: Arrays

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def request(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the tensors of a request for one of them."""
        return {name: array[index : index + 1] for name, array in self.inputs.items()}

    def rows(self, part: slice) -> dict[str, NDArray[Any]]:
        """Return the outputs of some of them."""
        return {name: array[part] for name, array in self.outputs.items()}


def golden_bytes(goldens: Goldens) -> bytes:
    """Return the ``goldens.npz``."""
    inputs = {f"inputs.{name}": array for name, array in goldens.inputs.items()}
    outputs = {f"outputs.{name}": array for name, array in goldens.outputs.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **inputs, **outputs)
    return buffer.getvalue()


def golden_count(spec: GeneratorSpec) -> int:
    """Return how many goldens an export makes: eight, or fewer where one of them is large."""
    return max(1, min(_USUAL, _MOST_BYTES // _row_bytes(spec)))


def read_goldens(entry: Entry) -> Goldens:
    """Return the goldens of an entry's build.

    A file that says of itself to hold anything else than the spec's tensors is not unpacked.

    Raises:
        EntryError: The file holds something else, or inputs that the generator refuses.
    """
    spec, path = entry.spec, entry.build_folder / GOLDEN_FILE
    count = entry.build.goldens.count
    inputs, outputs = example_tensors(spec), {item.name: item.raw for item in spec.outputs}
    if (size := count * _row_bytes(spec)) > _MOST_BYTES:
        raise EntryError(
            f"{path} should hold {size:,} bytes, and {_MOST_BYTES:,} are read at most; export again"
        )
    try:
        # What does not compress at all grows a little.
        data = read_regular(path, most=_ROOM + math.ceil(1.01 * size))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            goldens = Goldens(
                {n: _member(archive, f"inputs.{n}", kind, count) for n, kind in inputs.items()},
                {n: _member(archive, f"outputs.{n}", kind, count) for n, kind in outputs.items()},
            )
        rows_from_request(spec, goldens.inputs, most=MOST_GOLDENS)
    except BadRequest as error:
        raise EntryError(f"{path} asks for what the spec refuses: {error}; export again") from error
    except Exception as error:  # zipfile, zlib and numpy share no base of theirs
        raise EntryError(
            f"{path} holds no goldens ({getattr(error, 'strerror', None) or error}); export again"
        ) from error
    return goldens


def _row_bytes(spec: GeneratorSpec) -> int:
    """Return how much one golden takes, its inputs and its outputs."""
    kinds = [*example_tensors(spec).values(), *(item.raw for item in spec.outputs)]
    return sum(kind.most_bytes for kind in kinds)


def _member(archive: zipfile.ZipFile, name: str, kind: TensorType, count: int) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        largest = (count, *(kind.largest or kind.row_shape))
        found = read_npy(member, kind.dtype, (count, *kind.row_shape), largest=largest)
        return found.copy()  # to be changed by whoever likes


@dataclass(frozen=True)
class GoldenVerdict:
    """What a comparison with the goldens found.

    Attributes:
        passed: The outputs are right for their engine class.
        exact: They are equal to the bit.
        output: Name of the output that differs most, relative to its values.
        worst: Index of the golden whose output differs most.
        largest: Largest difference of an element: levels of a picture, units of other outputs.
        fraction: Share of the elements that differ.
    """

    passed: bool
    exact: bool
    output: str
    worst: int
    largest: float
    fraction: float

    def __str__(self) -> str:
        return (
            f"{self.output} of golden {self.worst} differs most, by up to {self.largest:g}; "
            f"{self.fraction:.2%} of all elements differ"
        )


def goldens_to_meet(entry: Entry, engine_class: str) -> tuple[Goldens, float | None]:
    """Return the goldens that ``engine_class`` has to draw, and how near it has to come to them.

    On another class a build in fewer bits draws other bits by more than rounding (the same 8-bit
    network with and without VNNI: half of all elements), so it is held to what its gate held it to:
    to FP32's goldens, within the bound of the worst sample.

    Returns:
        The goldens, and the least peak signal-to-noise ratio in dB; None for equal to the bit or,
        on another class, but for rounding.

    Raises:
        EntryError: There are none.
    """
    gate = entry.build.gate
    if gate is None or entry.build.goldens.engine_class == engine_class:
        return read_goldens(entry), None
    if (least_psnr_db := gate.bounds.get("worst_psnr_db")) is None:
        raise EntryError(f"{entry.build_folder}: its gate has no bound worst_psnr_db; build again")
    goldens = read_goldens(read_entry(entry.folder, FP32))
    if len(goldens) != entry.build.goldens.count:
        raise EntryError(
            f"{entry.build_folder} has {entry.build.goldens.count} goldens and {FP32} "
            f"{len(goldens)}; build again"
        )
    return goldens, least_psnr_db


def compare_with_goldens(
    spec: GeneratorSpec,
    found: Arrays,
    goldens: Arrays,
    *,
    same_class: bool,
    least_psnr_db: float | None = None,
) -> GoldenVerdict:
    """Compare raw outputs with those of goldens, both by name, [N, ...].

    Args:
        spec: What the generator gives.
        found: What was drawn.
        goldens: What should have been.
        same_class: Whether they were made by the same engine class: then to the bit.
        least_psnr_db: How near another class must come; None for rounding alone.
    """

    def is_near(item: OutputKind, drawn: NDArray[Any], golden: NDArray[Any]) -> bool:
        if least_psnr_db is None:
            return item.is_same_but_for_rounding(drawn, golden)
        return bool(item.psnr(drawn, golden).min() >= least_psnr_db)

    verdicts = [
        _compare(item, found.get(item.name), goldens[item.name], None if same_class else is_near)
        for item in spec.outputs
    ]
    return max(verdicts, key=lambda v: (not v.passed, not v.exact, v.fraction))


def _compare(
    item: OutputKind,
    found: NDArray[Any] | None,
    golden: NDArray[Any],
    is_near: Callable[[OutputKind, NDArray[Any], NDArray[Any]], bool] | None,
) -> GoldenVerdict:
    if found is None or found.shape != golden.shape:
        return GoldenVerdict(False, False, item.name, 0, math.inf, 1.0)
    difference = np.abs(found.astype(np.int16 if found.dtype == np.uint8 else np.float64) - golden)
    per_sample = difference.reshape(len(golden), -1)
    exact = found.tobytes() == golden.tobytes()
    return GoldenVerdict(
        passed=exact or (is_near is not None and is_near(item, found, golden)),
        exact=exact,
        output=item.name,
        worst=int(per_sample.sum(axis=1).argmax()),
        largest=float(difference.max(initial=0)),
        fraction=float((difference > 0).mean()),
    )


def save_worst_pair(
    found: Mapping[str, NDArray[Any]], goldens: Arrays, verdict: GoldenVerdict, path: Path
) -> bool:
    """Write a PNG with the golden on the left and what the server drew on the right.

    Returns:
        Whether there was something to look at: the output is one of pixels.
    """
    from latentry.contract.images import grid_from_images, pil_from_uint8

    pair = [arrays[verdict.output][verdict.worst] for arrays in (goldens, found)]
    if pair[0].dtype != np.uint8:
        return False
    pixels = [row if row.ndim == 3 else row[:, :, None] for row in pair]
    if pixels[0].shape != pixels[1].shape:
        pixels = pixels[1:]
    picture = pil_from_uint8(grid_from_images(pixels, columns=len(pixels)))
    picture.resize((picture.width * 4, picture.height * 4), 0).save(path)
    return True
