import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.samples import (
    BLACK,
    DIGEST,
    FEATURES,
    GREY,
    RGB,
    SMALL,
    pixels_of,
    pixels_of_data,
    plain,
    png_of,
    read,
    refuse,
    samples_of,
    written,
)

from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import read_shard, shard_bytes

pytest.importorskip("pyarrow", reason="Parquet needs the extra [synthesis]")


@pytest.mark.parametrize("image_format", ["png", "webp", "raw", "none"])
def test_parquet_reads_with_columns_of_their_types(tmp_path: Path, image_format: Any) -> None:
    import pyarrow
    import pyarrow.dataset
    import pyarrow.parquet

    output = OutputPart.model_construct(format="parquet", image=image_format)
    (tmp_path / "shard-000000.parquet").write_bytes(written(output, RGB))
    (tmp_path / "shard-000001.parquet").write_bytes(written(output, RGB, count=3))
    table = pyarrow.parquet.read_table(tmp_path / "shard-000000.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    expected = {
        "index": "int64",
        "seed": "int64",
        "class_label": "int64",
        "truncation_psi": "float",
        "sha256": "string",
    }
    if image_format == "none":
        expected["features"] = "fixed_size_list<element: float>[4]"
    else:
        expected["image"] = "binary"
    assert types == expected
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert facts == {"model_digest": DIGEST, "image": image_format, "shape": "[4, 7, 3]"}
    whole = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    assert whole.num_rows == 10
    assert whole["seed"].to_pylist()[:2] == [2**32 - 1, 2**32 - 2]
    if image_format == "none":
        vectors = whole["features"].to_pylist()
        assert vectors[6] == [6.0, 7.0, 8.0, 9.0]
        assert vectors[9] == [2.0, 3.0, 4.0, 5.0]
        return
    for data, pixels in zip(whole["image"].to_pylist(), pixels_of(RGB, 7), strict=False):
        found = pixels_of_data({"image": data}, output, RGB)
        np.testing.assert_array_equal(found, pixels)


def test_features_go_beside_images() -> None:
    import pyarrow.parquet

    output = OutputPart(format="parquet", image="png")
    samples = [
        Sample(**{**sample.__dict__, "features": np.full(3, place, np.float32)})
        for place, sample in enumerate(samples_of(output, GREY))
    ]
    data = shard_bytes(samples, output, GREY, DIGEST)
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert table["features"].to_pylist()[2] == [2.0, 2.0, 2.0]
    assert len(read(data, output, GREY)) == 7


def test_without_images_the_recorded_hash_is_read() -> None:
    samples = samples_of(FEATURES, GREY)
    data = shard_bytes(samples, FEATURES, GREY, DIGEST)
    found = read(data, FEATURES, GREY)
    assert [plain(sample) for sample in found] == [plain(sample) for sample in samples]


def table_of(rows: Any = 1, written: Any = None, **columns: Any) -> Callable[[], bytes]:
    """Return what writes a table; ``written`` says how."""

    def write() -> bytes:
        import pyarrow
        import pyarrow.parquet

        sound = {"index": [0] * rows, "seed": [0] * rows, "sha256": ["0" * 64] * rows}
        data = {**sound, "image": [png_of(4, 4)] * rows, **columns}
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(data), buffer, **(written or {}))
        return buffer.getvalue()

    return write


TABLES = {
    "many rows": table_of(2_000_000, image=[b""] * 2_000_000),
    "a large picture": table_of(image=[bytes(20_000_000)]),
    "a picture of another size": table_of(image=[png_of(8, 8)]),
    "lists for pictures": table_of(image=[[1, 2]]),
    "lists for seeds": table_of(seed=[[1, 2]]),
    "tables for inputs": table_of(class_label=[{"a": 1}]),
    "texts for inputs": table_of(class_label=["x"]),
    "no seed": table_of(seed=[None], class_label=[None]),
    "a long hash": table_of(1000, sha256=["0" * 2_000_000] * 1000),
    "a short hash": table_of(sha256=["0" * 63]),
    "no hash": table_of(sha256=[None]),
    "a hash that is a file": table_of(sha256=[b"0" * 64]),
    "a column of another name": table_of(extra=[1]),
    "vectors of any length": table_of(features=[[1.0, 2.0]]),
    "hashes that grow": table_of(
        1000,
        {"use_dictionary": False, "column_encoding": {"sha256": "DELTA_BYTE_ARRAY"}},
        sha256=["0" * 1_000_000] * 1000,
    ),
    "many columns": table_of(**{f"c{n}": [1] for n in range(100)}),
}


LONG = ("a long hash", "hashes that grow")


@pytest.mark.parametrize("name", TABLES)
def test_a_parquet_file_of_another_kind_is_refused_and_not_unpacked(name: str) -> None:
    refuse(TABLES[name](), "parquet", count=1000 if name in LONG else 1)


def test_two_columns_of_one_name_are_refused() -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(table_of()()))
    twice = table.append_column("seed", table["seed"])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(twice, buffer)
    with pytest.raises(ValueError, match="its columns are index, seed, sha256, image, seed"):
        read(buffer.getvalue(), OutputPart(format="parquet"), SMALL, 1)


def test_vectors_of_absurd_length_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(FEATURES, GREY)
    monkeypatch.setattr("latentry.synthesis.sinks.parquet.MOST_FEATURES", 3)
    with pytest.raises(ValueError, match="its column features holds fixed_size_list"):
        read(data, FEATURES, GREY)


@pytest.mark.parametrize("kind", ["png", "webp", "raw"])
def test_files_of_images_are_not_compressed_once_more(kind: Any) -> None:
    import pyarrow.parquet

    data = written(OutputPart(format="parquet", image=kind), RGB)
    group = pyarrow.parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    found = {column.path_in_schema: column.compression for column in columns}
    assert found.pop("image") == ("SNAPPY" if kind == "raw" else "UNCOMPRESSED")
    assert set(found.values()) == {"SNAPPY"}


def test_images_in_a_file_that_has_none_are_refused() -> None:
    output = OutputPart.model_construct(format="parquet", image="none")
    with pytest.raises(ValueError, match="its column image holds binary"):
        list(read_shard(io.BytesIO(table_of()()), output, SMALL, 1))


def test_the_sound_one_among_them_is_read() -> None:
    (sample,) = read(table_of()(), OutputPart(format="parquet"), SMALL, 1)
    assert (sample.index, sample.seed, sample.sha256) == (0, 0, BLACK)
