"""Goldens: a few samples with known images that travel with an entry and prove a server.

On the engine class that made them, the images must be equal to the bit. On another CPU class a
correct engine differs by no more than rounding does (``is_same_but_for_rounding``).
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import EntryError
from latentry.contract.files import read_regular
from latentry.contract.images import (
    Uint8,
    grid_from_images,
    is_same_but_for_rounding,
    pil_from_uint8,
)
from latentry.contract.npy import read_npy
from latentry.contract.spec import GeneratorSpec, Role
from latentry.serving.entries.manifest import GoldenRecord, Manifest

GOLDEN_FILE = "goldens.npz"
GOLDEN_SEEDS = tuple(range(8))
_GOLDEN_PSI = (1.0, 0.7)
_ROOM = 64 * 2**10


def golden_inputs(spec: GeneratorSpec) -> dict[str, NDArray[Any]]:
    """Return the wire inputs of the goldens: seeds, and controls that go through the classes."""
    index = np.arange(len(GOLDEN_SEEDS))
    inputs: dict[str, NDArray[Any]] = {"seed": np.array(GOLDEN_SEEDS, np.int64)[:, None]}
    if spec.classes:
        inputs[Role.CLASS_LABEL] = (index % len(spec.classes)).astype(np.int64)[:, None]
    if spec.w:
        inputs[Role.TRUNCATION_PSI] = np.resize(_GOLDEN_PSI, index.size).astype(np.float32)[:, None]
    return inputs


def golden_record(
    inputs: Mapping[str, NDArray[Any]], images: Uint8, engine_class: str
) -> GoldenRecord:
    """Return what the manifest says of goldens with these inputs and images [N, H, W, C]."""
    return GoldenRecord(
        seeds=tuple(inputs["seed"][:, 0].tolist()),
        controls={k: tuple(v[:, 0].tolist()) for k, v in inputs.items() if k != "seed"},
        sha256=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images),
        engine_class=engine_class,
    )


def golden_bytes(images: Uint8) -> bytes:
    """Return the ``goldens.npz`` of uint8 [N, H, W, C]."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    return buffer.getvalue()


def read_goldens(folder: Path, manifest: Manifest) -> Uint8:
    """Return the golden images of an entry, uint8 [N, H, W, C] of its spec.

    A file that says of itself to hold anything else is not unpacked.

    Raises:
        EntryError: The file holds something else, or the manifest records other inputs than a
            server is asked for.
    """
    spec, path = manifest.model.spec, folder / GOLDEN_FILE
    seeds, controls = manifest.record.goldens.seeds, manifest.record.goldens.controls
    wanted = {name: values[:, 0].tolist() for name, values in golden_inputs(spec).items()}
    if {"seed": list(seeds), **{name: list(values) for name, values in controls.items()}} != wanted:
        raise EntryError(f"{path} is recorded with other seeds or controls; export again")
    shape = (len(seeds), *spec.image.row_shape)
    try:
        # What does not compress at all grows a little.
        data = read_regular(path, most=_ROOM + math.ceil(1.01 * math.prod(shape)))
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("images.npy") as member:
            images: Uint8 = read_npy(
                member, np.uint8, shape
            ).copy()  # to be changed by whoever likes
    except Exception as error:  # zipfile, zlib and numpy share no base of theirs
        raise EntryError(
            f"{path} holds no golden images ({getattr(error, 'strerror', None) or error}); export "
            "again"
        ) from error
    return images


@dataclass(frozen=True)
class GoldenVerdict:
    """What a comparison with the goldens found.

    Attributes:
        passed: The images are right for their engine class.
        exact: They are equal to the bit.
        worst: Index of the golden that differs most.
        levels: Largest difference of an element, 0 .. 255.
        fraction: Share of the elements that differ.
    """

    passed: bool
    exact: bool
    worst: int
    levels: int
    fraction: float

    def __str__(self) -> str:
        return (
            f"golden {self.worst} differs most, by up to {self.levels} levels; "
            f"{self.fraction:.2%} of all elements differ"
        )


def compare_with_goldens(images: Uint8, goldens: Uint8, *, same_class: bool) -> GoldenVerdict:
    """Compare ``images`` with ``goldens``, both uint8 [N, H, W, C]."""
    if images.shape != goldens.shape:
        return GoldenVerdict(False, False, 0, 255, 1.0)
    difference = np.abs(images.astype(np.int16) - goldens.astype(np.int16))
    per_image = difference.reshape(len(goldens), -1)
    levels = int(difference.max(initial=0))
    fraction = float((difference > 0).mean())
    worst = int(per_image.sum(axis=1).argmax())
    passed = levels == 0 or (not same_class and is_same_but_for_rounding(images, goldens))
    return GoldenVerdict(passed, levels == 0, worst, levels, fraction)


def save_worst_pair(images: Uint8, goldens: Uint8, verdict: GoldenVerdict, path: Path) -> None:
    """Write a PNG with the golden on the left and what the server drew on the right."""
    pair = [goldens[verdict.worst], images[verdict.worst]]
    if pair[0].shape != pair[1].shape:
        pair = pair[1:]
    picture = pil_from_uint8(grid_from_images(pair, columns=len(pair)))
    picture.resize((picture.width * 4, picture.height * 4), 0).save(path)
