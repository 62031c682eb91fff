"""Parquet: a sample is a row; feature vectors may stand beside pictures, or instead of them."""

import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import listed
from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.sinks.facts import Facts
from latentry.synthesis.sinks.output_data import SampleOutput, sha256_of_data
from latentry.synthesis.sinks.sample import (
    FEATURES,
    MOST_FEATURES,
    Sample,
    columns_of,
)
from latentry.synthesis.sinks.shard_format import ROOM_OF_FILE, ShardFormat

_SHA256_CHARACTERS = 64
_MOST_CHARACTER = 4  # bytes in UTF-8
_MOST_TOGETHER, _BYTES_TOGETHER = 256, 64 * 2**20  # rows that are unpacked at once


def _write(
    samples: Sequence[Sample],
    outputs: Sequence[SampleOutput],
    spec: GeneratorSpec,
    model_digest: str,
) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {
        name: pyarrow.array(values)
        if values.ndim == 1
        else _vectors(values.reshape(-1), values.shape[1])
        for name, values in columns_of(samples).items()
    }
    columns["sha256"] = pyarrow.array([sample.sha256 for sample in samples], pyarrow.string())
    for output in _written(outputs):
        columns[output.name] = _column(samples, output)
    if samples and samples[0].features.size:
        vectors = np.stack([sample.features for sample in samples])
        columns[FEATURES] = _vectors(vectors.reshape(-1), vectors.shape[1])
    facts = {"model_digest": model_digest}
    for output in outputs:
        more = "" if output.is_main else f"{output.name}."
        facts[f"{more}shape"] = json.dumps(list(output.shape))
        if not _is_vector(output):
            facts[f"{more}image"] = output.file_format or output.image_format
    table = pyarrow.table(columns).replace_schema_metadata(facts)
    buffer = io.BytesIO()
    # Files of pictures do not compress any further; the other columns do.
    plain = [output.name for output in _written(outputs) if output.file_format]
    compression = {name: "NONE" if name in plain else "SNAPPY" for name in columns}
    pyarrow.parquet.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


def _written(outputs: Sequence[SampleOutput]) -> list[SampleOutput]:
    return [output for output in outputs if output.is_written]


def _is_vector(output: SampleOutput) -> bool:
    """Whether it is a column of lists of numbers; pictures are bytes, as files or as pixels."""
    return output.file_format is None and output.dtype == np.float32


def _column(samples: Sequence[Sample], output: SampleOutput) -> Any:
    import pyarrow

    data = [sample.data[output.name] for sample in samples]
    if _is_vector(output):
        return _vectors(np.frombuffer(b"".join(data), np.float32), math.prod(output.shape))
    return pyarrow.array(data, pyarrow.binary())


def _vectors(flat: NDArray[np.float32], size: int) -> Any:
    """Return a column of vectors of this size that follow each other."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), size)


def _read(
    file: BinaryIO, outputs: Sequence[SampleOutput], spec: GeneratorSpec, count: int
) -> Iterator[Sample]:
    import pyarrow.parquet

    facts, written = Facts(spec), _written(outputs)

    # A value that stands there once and is named a million times is not unpacked a million times;
    # encodings that grow from one value to the next cannot be read like this, and are refused.
    paths = facts.texts if count else {}  # of no samples nothing is said
    texts = {name: (least, _MOST_CHARACTER * most) for name, (least, most) in paths.items()}
    texts["sha256"] = (_SHA256_CHARACTERS, _SHA256_CHARACTERS)
    texts |= {output.name: (0, output.most_bytes) for output in written if not _is_vector(output)}
    parquet = pyarrow.parquet.ParquetFile(file, read_dictionary=list(texts))
    names = _checked_columns(parquet, written, facts, paths)
    row_bytes = sum([1, facts.most_bytes, *(output.most_bytes for output in written)])
    _check_sizes(parquet.metadata, names, count, ROOM_OF_FILE + count * row_bytes)
    rows_together = max(1, min(_MOST_TOGETHER, _BYTES_TOGETHER // row_bytes))
    data_names = {output.name for output in written}
    for batch in parquet.iter_batches(batch_size=rows_together, columns=names):
        columns = {name: batch.column(name) for name in names}
        for name, (least, most) in texts.items():
            _check_lengths(name, columns[name].dictionary, least, most)
        for place in range(batch.num_rows):
            row = {name: columns[name][place].as_py() for name in names if name not in data_names}
            data = {output.name: _data(columns[output.name], place, output) for output in written}
            index, seed, sha256 = (row.pop(name) for name in ("index", "seed", "sha256"))
            yield Sample(
                index=index,
                seed=seed,
                inputs=facts.read(row),
                # Without the picture there is only the recorded hash to go by.
                sha256=sha256_of_data(outputs, data) if len(written) == len(outputs) else sha256,
                data=data,
            )


def _data(column: Any, place: int, output: SampleOutput) -> bytes:
    """Return what a column holds of an output, as :meth:`SampleOutput.data` gave it."""
    if not _is_vector(output):
        data: bytes = column[place].as_py()
        return data
    values = column[place].values
    if values is None or values.null_count:
        raise ValueError(f"its column {output.name} lacks numbers")
    vector: NDArray[np.float32] = values.to_numpy()
    return vector.tobytes()


def _checked_columns(
    parquet: Any,
    written: Sequence[SampleOutput],
    facts: Facts,
    paths: Iterable[str],
) -> list[str]:
    """Return the names of the columns to read, ``paths`` among them; feature vectors are not."""
    import pyarrow

    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    files = pyarrow.dictionary(pyarrow.int32(), pyarrow.binary())
    needed = {"index": pyarrow.int64(), "seed": pyarrow.int64(), "sha256": texts}
    needed |= dict.fromkeys(paths, texts)
    for output in written:
        vectors = pyarrow.list_(pyarrow.float32(), math.prod(output.shape))
        needed[output.name] = vectors if _is_vector(output) else files
    allowed = dict(needed)
    allowed |= {name: pyarrow.from_numpy_dtype(kind) for name, kind in facts.numbers.items()}
    allowed |= {name: pyarrow.list_(pyarrow.float32(), n) for name, n in facts.vectors.items()}
    unread = None if FEATURES in needed else FEATURES  # an output may be called so, too
    if len(parquet.schema_arrow) > len(allowed) + 1:
        raise ValueError(f"it holds {len(parquet.schema_arrow)} columns")
    names = list(parquet.schema_arrow.names)
    for field_ in parquet.schema_arrow:
        kind = field_.type
        if field_.name == unread and pyarrow.types.is_fixed_size_list(kind):
            fits = kind.value_type == pyarrow.float32() and kind.list_size <= MOST_FEATURES
        else:
            fits = kind == allowed.get(field_.name)
        if not fits:
            raise ValueError(f"its column {field_.name} holds {kind}")
    if len(set(names)) < len(names) or not needed.keys() <= set(names):
        raise ValueError(f"its columns are {listed(names)}")
    return [name for name in names if name != unread]


def _check_sizes(facts: Any, names: Sequence[str], count: int, most: int) -> None:
    """Refuse a file whose columns ``names`` hold another number of rows, or more than ``most``."""
    if facts.num_rows != count:
        raise ValueError(f"it holds {facts.num_rows} rows")
    for group in range(facts.num_row_groups):
        for column in range(facts.num_columns):
            chunk = facts.row_group(group).column(column)
            # Vectors lie deeper in the schema: embedding.list.element.
            if chunk.path_in_schema.partition(".")[0] in names and (
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
