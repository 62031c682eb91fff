"""NPZ: an array of pixels, and one of each thing that is said of a sample."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentry.contract.spec import GeneratorSpec
from latentry.contract.values.npy import read_npy
from latentry.synthesis.sinks.sample import (
    Sample,
    columns_of,
    input_types,
    inputs_from_json,
    pixel_sha256,
    text_lengths,
)
from latentry.synthesis.sinks.shard_format import ROOM_OF_FILE, ShardFormat


def _write(
    samples: Sequence[Sample], image_format: str, spec: GeneratorSpec, model_digest: str
) -> bytes:
    pixels = np.frombuffer(b"".join(sample.data for sample in samples), np.uint8)
    arrays: dict[str, NDArray[Any]] = {
        "images": pixels.reshape(len(samples), *spec.image.row_shape),
        **columns_of(samples),
        "model_digest": np.array(model_digest),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class _CarefulFile:
    """A file of which up to ``most`` bytes are read at once: zipfile reads a whole directory."""

    def __init__(self, file: BinaryIO) -> None:
        self.most: int | None = ROOM_OF_FILE
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        """Return the next ``size`` bytes, or up to the end."""
        if self.most is None:
            return self._read(size)
        data = self._read(self.most + 1 if size < 0 else min(size, self.most + 1))
        if len(data) > self.most:
            raise ValueError(f"its directory takes over {self.most:,} bytes")
        return data


def _read(file: BinaryIO, image_format: str, spec: GeneratorSpec, count: int) -> Iterator[Sample]:
    texts = text_lengths(spec)
    types: dict[str, type[np.generic]] = {"index": np.int64, "seed": np.int64, **input_types(spec)}
    careful = _CarefulFile(file)
    with zipfile.ZipFile(careful) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if odd := set(names) - {"images", "model_digest", *types, *texts}:
            raise ValueError(f"it holds {min(odd)[:100]}")
        careful.most = None
        columns = {
            name: _read_texts(archive, name, texts[name][1], count)
            if name in texts
            else _read_column(archive, name, types[name], count)
            for name in names
            if name not in ("images", "model_digest")
        }
        with archive.open("images.npy") as member:
            images = read_npy(member, np.uint8, (count, *spec.image.row_shape))
    for place, pixels in enumerate(images):
        row = {name: values[place].item() for name, values in columns.items()}
        yield Sample(
            index=row.pop("index"),
            seed=row.pop("seed"),
            inputs=inputs_from_json(row, texts),
            sha256=pixel_sha256(pixels),
            data=pixels.tobytes(),
        )


def _read_column(
    archive: zipfile.ZipFile, name: str, dtype: type[np.generic], count: int
) -> NDArray[Any]:
    """Return a column of numbers, [count]."""
    with archive.open(f"{name}.npy") as member:
        return read_npy(member, dtype, (count,))


def _read_texts(archive: zipfile.ZipFile, name: str, most: int, count: int) -> NDArray[Any]:
    """Return a column of texts of up to ``most`` characters, [count]."""
    with archive.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)  # type: ignore[no-untyped-call]
        _, _, dtype = np.lib.format.read_array_header_1_0(member)  # type: ignore[no-untyped-call]
    if dtype.kind != "U" or not dtype.itemsize <= np.dtype("U1").itemsize * most:
        raise ValueError(f"its column {name} holds {dtype}")
    with archive.open(f"{name}.npy") as member:
        return read_npy(member, dtype, (count,))


NPZ = ShardFormat(".npz", write=_write, read=_read, library="numpy", pixels_only=True)
