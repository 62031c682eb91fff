"""NPZ: an array of each output, and one of each thing that is said of a sample."""

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentry.contract.spec import GeneratorSpec
from latentry.contract.values.npy import read_npy
from latentry.synthesis.sinks.facts import Facts
from latentry.synthesis.sinks.output_data import MAIN, SampleOutput, sample_sha256
from latentry.synthesis.sinks.sample import (
    Sample,
    columns_of,
)
from latentry.synthesis.sinks.shard_format import ROOM_OF_FILE, ShardFormat


def _write(
    samples: Sequence[Sample],
    outputs: Sequence[SampleOutput],
    spec: GeneratorSpec,
    model_digest: str,
) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    for output in outputs:
        rows = np.frombuffer(b"".join(sample.data[output.name] for sample in samples), output.dtype)
        arrays[_array_name(output)] = rows.reshape(len(samples), *output.shape)
    arrays |= {**columns_of(samples), "model_digest": np.array(model_digest)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _array_name(output: SampleOutput) -> str:
    return "images" if output.name == MAIN else output.name


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


def _read(
    file: BinaryIO, outputs: Sequence[SampleOutput], spec: GeneratorSpec, count: int
) -> Iterator[Sample]:
    facts = Facts(spec)
    types: dict[str, type[np.generic]] = {"index": np.int64, "seed": np.int64, **facts.numbers}
    arrays = {_array_name(output) for output in outputs}
    careful = _CarefulFile(file)
    with zipfile.ZipFile(careful) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if odd := set(names) - {"model_digest", *arrays, *types, *facts.texts, *facts.vectors}:
            raise ValueError(f"it holds {min(odd)[:100]}")
        if packed := [item for item in archive.infolist() if item.compress_type]:
            raise ValueError(f"its {packed[0].filename[:100]} is compressed")
        careful.most = None
        columns = {
            name: _read_texts(archive, name, facts.texts[name][1], count)
            if name in facts.texts
            else _read_column(archive, name, *_column_type(name, types, facts), count)
            for name in names
            if name not in (*arrays, "model_digest")
        }
        rows = {}
        for output in outputs:
            with archive.open(f"{_array_name(output)}.npy") as member:
                rows[output.name] = read_npy(member, output.dtype, (count, *output.shape))
    for place in range(count):
        row = {name: values[place].tolist() for name, values in columns.items()}
        yield Sample(
            index=row.pop("index"),
            seed=row.pop("seed"),
            inputs=facts.read(row),
            sha256=sample_sha256(outputs, [values[place] for values in rows.values()]),
            data={name: values[place].tobytes() for name, values in rows.items()},
        )


def _column_type(
    name: str, types: Mapping[str, type[np.generic]], facts: Facts
) -> tuple[type[np.generic], tuple[int, ...]]:
    """Return the element type of a column of numbers, and the shape of a row."""
    if name in facts.vectors:
        return np.float32, (facts.vectors[name],)
    return types[name], ()


def _read_column(
    archive: zipfile.ZipFile,
    name: str,
    dtype: type[np.generic],
    row_shape: tuple[int, ...],
    count: int,
) -> NDArray[Any]:
    """Return a column of numbers, [count, *row_shape]."""
    with archive.open(f"{name}.npy") as member:
        return read_npy(member, dtype, (count, *row_shape))


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
