import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentry.contract.spec import ImageOutput
from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.image_data import data_from_image, image_from_data
from latentry.synthesis.sinks.sample import Sample, pixel_sha256
from latentry.synthesis.sinks.shards import encoder_versions, read_shard, shard_bytes, shard_stem

pytest.importorskip("pyarrow", reason="Parquet needs the extra [synthesis]")

DIGEST = "d" * 64
GREY = ImageOutput(height=6, width=5, channels=1)
RGB = ImageOutput(height=4, width=7, channels=3)
OUTPUTS = [
    OutputPart(format="webdataset", image="png"),
    OutputPart(format="webdataset", image="webp"),
    OutputPart(format="webdataset", image="raw"),
    OutputPart(format="parquet", image="png"),
    OutputPart(format="parquet", image="webp"),
    OutputPart(format="parquet", image="raw"),
    OutputPart(format="npz"),
]
FEATURES = OutputPart.model_construct(format="parquet", image="none")

any_output = pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: f"{o.format}-{o.image}")
any_image = pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "rgb"])


def pixels_of(image: ImageOutput, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *image.row_shape)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def samples_of(output: OutputPart, image: ImageOutput, count: int = 7) -> list[Sample]:
    return [
        Sample(
            index=1000 + place,
            seed=2**32 - 1 - place,
            controls={"class_label": np.int64(place % 3), "truncation_psi": np.float32(0.7)},
            sha256=pixel_sha256(pixels),
            data=data_from_image(pixels, output.image),
            features=np.arange(4, dtype=np.float32) + place
            if output.image == "none"
            else np.empty(0, np.float32),
        )
        for place, pixels in enumerate(pixels_of(image, count))
    ]


def written(output: OutputPart, image: ImageOutput, count: int = 7) -> bytes:
    return shard_bytes(samples_of(output, image, count), output, image, DIGEST)


def read(data: bytes, output: OutputPart, image: ImageOutput, count: int = 7) -> list[Sample]:
    return list(read_shard(io.BytesIO(data), output, image, count))


def plain(sample: Sample) -> dict[str, Any]:
    controls = {name: round(float(value), 6) for name, value in sample.controls.items()}
    return {"index": sample.index, "seed": sample.seed, "sha256": sample.sha256, **controls}


@any_output
@any_image
def test_what_is_written_is_read_back(output: OutputPart, image: ImageOutput) -> None:
    samples = samples_of(output, image)
    found = read(shard_bytes(samples, output, image, DIGEST), output, image, len(samples))
    assert [plain(sample) for sample in found] == [plain(sample) for sample in samples]
    for sample, pixels in zip(found, pixels_of(image, len(samples)), strict=True):
        shown = image_from_data(sample.data, output.image, image)
        np.testing.assert_array_equal(shown, pixels)


@any_output
def test_a_changed_pixel_is_seen_by_the_hash(output: OutputPart) -> None:
    (sample,) = samples_of(output, GREY, count=1)
    other = pixels_of(GREY, 1)[0].copy()
    other[3, 2] ^= 1
    changed = Sample(**{**sample.__dict__, "data": data_from_image(other, output.image)})
    (found,) = read(shard_bytes([changed], output, GREY, DIGEST), output, GREY, 1)
    assert found.sha256 == pixel_sha256(other) != sample.sha256


PROGRAM = """
import hashlib, os, sys, time
sys.path.insert(0, sys.argv[1])
os.umask(0o077)
import test_shards
time.sleep(1.1)  # past the next second of a clock that a file might hold
for output in [*test_shards.OUTPUTS, test_shards.FEATURES]:
    print(hashlib.sha256(test_shards.written(output, test_shards.RGB)).hexdigest())
"""


def test_the_bytes_are_the_same_in_another_process_place_and_time(tmp_path: Path) -> None:
    first = [written(output, RGB) for output in [*OUTPUTS, FEATURES]]
    environment = {
        **{key: value for key, value in os.environ.items() if key.startswith("PATH")},
        "TZ": "Pacific/Kiritimati", "USER": "nobody", "LOGNAME": "nobody", "HOME": str(tmp_path),
        "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "86400",
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    answer = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    assert answer.split() == [hashlib.sha256(data).hexdigest() for data in first]
    assert [written(output, RGB) for output in [*OUTPUTS, FEATURES]] == first


@any_output
def test_nothing_of_this_machine_is_in_a_file(output: OutputPart) -> None:
    data = written(output, RGB)
    for word in (os.uname().nodename, os.environ.get("USER", ""), tempfile.gettempdir(), "pandas"):
        assert not word or len(word) < 4 or word.encode() not in data


@pytest.mark.parametrize("image_format", ["png", "webp", "raw"])
def test_tar_entries_are_sorted_and_of_nobody(image_format: str) -> None:
    output = OutputPart.model_validate({"image": image_format})
    with tarfile.open(fileobj=io.BytesIO(written(output, RGB)), mode="r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names)
    suffix = {"raw": "npy"}.get(image_format, image_format)
    assert names[:2] == sorted(["0000001000.json", f"0000001000.{suffix}"])
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    assert all(member.isreg() and not member.pax_headers for member in members)


def test_gnu_tar_and_pillow_read_a_shard(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").write_bytes(written(OUTPUTS[0], RGB))
    listing = subprocess.check_output(
        ["tar", "--utc", "--full-time", "-tvf", "shard.tar"], cwd=tmp_path, text=True
    )
    assert len(listing.splitlines()) == 14
    assert all(re.match(r"-rw-r--r-- 0/0 .* 1970-01-01 ", line) for line in listing.splitlines())
    subprocess.check_call(["tar", "-xf", "shard.tar", "--no-same-owner"], cwd=tmp_path)
    for place, pixels in enumerate(pixels_of(RGB, 7)):
        with Image.open(tmp_path / f"{1000 + place:010d}.png") as picture:
            picture.verify()
        with Image.open(tmp_path / f"{1000 + place:010d}.png") as picture:
            assert picture.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(picture), pixels)
        facts = json.loads((tmp_path / f"{1000 + place:010d}.json").read_text())
        assert facts == {
            "index": 1000 + place, "seed": 2**32 - 1 - place, "class_label": place % 3,
            "truncation_psi": 0.7, "model_digest": DIGEST, "sha256": pixel_sha256(pixels),
        }  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # webdataset leaves its files to the collector
@pytest.mark.parametrize("image_format", ["png", "webp", "raw"])
def test_webdataset_reads_a_shard(tmp_path: Path, image_format: str) -> None:
    webdataset = pytest.importorskip("webdataset", reason="a tool of development")
    output = OutputPart.model_validate({"image": image_format})
    (tmp_path / "shard-000000.tar").write_bytes(written(output, RGB))
    dataset = webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False)
    found = list(dataset.decode("pil"))
    assert [sample["__key__"] for sample in found] == [f"{1000 + place:010d}" for place in range(7)]
    assert [sample["json"]["class_label"] for sample in found] == [0, 1, 2, 0, 1, 2, 0]
    suffix = {"raw": "npy"}.get(image_format, image_format)
    for sample, pixels in zip(found, pixels_of(RGB, 7), strict=True):
        np.testing.assert_array_equal(np.asarray(sample[suffix]), pixels)


@pytest.mark.parametrize("image_format", ["png", "webp", "raw", "none"])
def test_parquet_reads_with_columns_of_their_types(tmp_path: Path, image_format: str) -> None:
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
        np.testing.assert_array_equal(image_from_data(data, image_format, RGB), pixels)


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


@any_image
def test_numpy_reads_npz_without_pickle(tmp_path: Path, image: ImageOutput) -> None:
    (tmp_path / "shard.npz").write_bytes(written(OutputPart(format="npz"), image))
    with np.load(tmp_path / "shard.npz", allow_pickle=False) as arrays:
        assert arrays.files == [
            "images", "index", "seed", "class_label", "truncation_psi", "model_digest",
        ]  # fmt: skip
        np.testing.assert_array_equal(arrays["images"], pixels_of(image, 7))
        assert arrays["seed"].dtype == arrays["class_label"].dtype == np.int64
        assert arrays["truncation_psi"].dtype == np.float32
        assert arrays["model_digest"].item() == DIGEST


@any_output
def test_a_shard_of_no_samples_is_a_file_like_any_other(output: OutputPart) -> None:
    data = shard_bytes([], output, RGB, DIGEST)
    assert data == shard_bytes([], output, RGB, DIGEST)
    assert read(data, output, RGB, 0) == []


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(0, 6),
    st.sampled_from(OUTPUTS),
    st.integers(0, 2**31),
)
def test_any_size_makes_the_round_trip(
    height: int, width: int, channels: int, count: int, output: OutputPart, seed: int
) -> None:
    image = ImageOutput.model_validate({"height": height, "width": width, "channels": channels})
    images = pixels_of(image, count, seed)
    samples = [
        Sample(place, seed + place, {}, "0" * 64, data_from_image(pixels, output.image))
        for place, pixels in enumerate(images)
    ]
    found = read(shard_bytes(samples, output, image, DIGEST), output, image, len(samples))
    assert [(s.index, s.seed) for s in found] == [(s.index, s.seed) for s in samples]
    assert [s.sha256 for s in found] == [pixel_sha256(pixels) for pixels in images]


def test_the_hash_is_of_the_pixels_row_by_row() -> None:
    pixels = pixels_of(RGB, 1)[0]
    assert pixel_sha256(pixels) == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert pixel_sha256(pixels[::-1]) == hashlib.sha256(pixels[::-1].tobytes()).hexdigest()


def test_names_sort_as_the_shards_do() -> None:
    assert shard_stem(12, 100) == "shard-000012"
    assert shard_stem(12, 1_000_000) == "shard-000012"
    stems = [shard_stem(number, 10_000_001) for number in (0, 9, 1_000_000, 9_999_999)]
    assert stems == sorted(stems)


def test_the_versions_are_of_what_writes_the_format() -> None:
    assert set(encoder_versions(OutputPart())) == {"shards", "zlib"}
    assert set(encoder_versions(OutputPart(image="webp"))) == {"shards", "webp"}
    assert set(encoder_versions(OutputPart(image="raw"))) == {"shards"}
    assert set(encoder_versions(OutputPart(format="parquet"))) == {"shards", "pyarrow", "zlib"}
    assert set(encoder_versions(OutputPart(format="npz"))) == {"shards", "numpy"}
