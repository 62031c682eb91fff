"""Parquet: a sample is a row; feature vectors may stand beside the images, or instead of them."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from latentry.contract.errors import listed
from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.sinks.image_data import image_from_data, most_image_bytes
from latentry.synthesis.sinks.sample import (
    MOST_FEATURES,
    Sample,
    columns_of,
    input_types,
    inputs_from_json,
    pixel_sha256,
    text_lengths,
)
from latentry.synthesis.sinks.shard_format import ROOM_OF_FILE, ShardFormat

_SHA256_CHARACTERS = 64
_MOST_CHARACTER = 4  # bytes in UTF-8


def _write(
    samples: Sequence[Sample], image_format: str, spec: GeneratorSpec, model_digest: str
) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: pyarrow.array(values) for name, values in columns_of(samples).items()}
    columns["sha256"] = pyarrow.array([sample.sha256 for sample in samples], pyarrow.string())
    if image_format != "none":
        columns["image"] = pyarrow.array([sample.data for sample in samples], pyarrow.binary())
    if samples and samples[0].features.size:
        vectors = np.stack([sample.features for sample in samples])
        flat = pyarrow.array(vectors.reshape(-1))
        columns["features"] = pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    facts = {
        "model_digest": model_digest,
        "image": image_format,
        "shape": json.dumps(list(spec.image.row_shape)),
    }
    table = pyarrow.table(columns).replace_schema_metadata(facts)
    buffer = io.BytesIO()
    # Files of images do not compress any further; the other columns do.
    plain = ["image"] if image_format in ("png", "webp") else []
    compression = {name: "NONE" if name in plain else "SNAPPY" for name in columns}
    pyarrow.parquet.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


def _read(file: BinaryIO, image_format: str, spec: GeneratorSpec, count: int) -> Iterator[Sample]:
    import pyarrow.parquet

    image, types = spec.image, input_types(spec)

    # A value that stands there once and is named a million times is not unpacked a million times;
    # encodings that grow from one value to the next cannot be read like this, and are refused.
    said = text_lengths(spec) if count else {}  # of no samples nothing is said
    texts = {name: (least, _MOST_CHARACTER * most) for name, (least, most) in said.items()}
    texts["sha256"] = (_SHA256_CHARACTERS, _SHA256_CHARACTERS)
    if image_format != "none":
        texts["image"] = (0, most_image_bytes(image))
    parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=list(texts))
    names = _checked_columns(parquet, image_format, types, said)
    _check_sizes(parquet.metadata, names, count, ROOM_OF_FILE + count * most_image_bytes(image))
    for batch in parquet.iter_batches(batch_size=256, columns=names):
        columns = {name: batch.column(name) for name in names}
        for name, (least, most) in texts.items():
            _check_lengths(name, columns[name].dictionary, least, most)
        for place in range(batch.num_rows):
            row = {name: column[place].as_py() for name, column in columns.items()}
            # Without images there is only the recorded hash to go by.
            found = row["sha256"]
            if image_format != "none":
                found = pixel_sha256(image_from_data(row["image"], image_format, image))
            yield Sample(
                index=row["index"],
                seed=row["seed"],
                inputs=inputs_from_json(
                    {key: value for key, value in row.items() if key in types or key in said}, said
                ),
                sha256=found,
                data=row.get("image", b""),
            )


def _checked_columns(
    parquet: Any, image_format: str, types: Mapping[str, type[np.generic]], said: Iterable[str]
) -> list[str]:
    """Return the names of the columns to read, ``said`` being texts; feature vectors are not."""
    import pyarrow

    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    files = pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())
    needed = {"index": pyarrow.int64(), "seed": pyarrow.int64(), "sha256": texts}
    needed |= dict.fromkeys(said, texts)
    if image_format != "none":
        needed["image"] = files
    allowed = {**needed, **{name: pyarrow.from_numpy_dtype(t) for name, t in types.items()}}
    if len(parquet.schema_arrow) > len(allowed) + 1:
        raise ValueError(f"it holds {len(parquet.schema_arrow)} columns")
    names = list(parquet.schema_arrow.names)
    for field_ in parquet.schema_arrow:
        kind = field_.type
        if field_.name == "features" and pyarrow.types.is_fixed_size_list(kind):
            fits = kind.value_type == pyarrow.float32() and kind.list_size <= MOST_FEATURES
        else:
            fits = kind == allowed.get(field_.name)
        if not fits:
            raise ValueError(f"its column {field_.name} holds {kind}")
    if len(set(names)) < len(names) or not needed.keys() <= set(names):
        raise ValueError(f"its columns are {listed(names)}")
    return [name for name in names if name != "features"]


def _check_sizes(facts: Any, names: Sequence[str], count: int, most: int) -> None:
    """Refuse a file whose columns ``names`` hold another number of rows, or more than ``most``."""
    if facts.num_rows != count:
        raise ValueError(f"it holds {facts.num_rows} rows")
    for group in range(facts.num_row_groups):
        for column in range(facts.num_columns):
            chunk = facts.row_group(group).column(column)
            if chunk.path_in_schema in names and (
                max(chunk.total_compressed_size, chunk.total_uncompressed_size) > most
            ):
                raise ValueError(
                    f"its column {chunk.path_in_schema} takes {chunk.total_uncompressed_size:,} "
                    "bytes"
                )


def _check_lengths(name: str, values: Any, least: int, most: int) -> None:
    """Refuse texts or files of a column that are shorter than ``least`` or longer than ``most``."""
    import pyarrow.compute

    ends = pyarrow.compute.min_max(pyarrow.compute.binary_length(values)).as_py()
    if len(values) and not least <= ends["min"] <= ends["max"] <= most:
        raise ValueError(f"its column {name} has values of {ends['min']} to {ends['max']:,} bytes")


PARQUET = ShardFormat(".parquet", write=_write, read=_read, library="pyarrow", takes_features=True)
