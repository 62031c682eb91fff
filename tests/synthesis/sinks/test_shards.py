import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import samples
from jobs.samples import (
    DIGEST,
    FEATURES,
    GREY,
    OUTPUTS,
    RGB,
    any_image,
    any_output,
    data_of,
    pixel_sha256,
    pixels_of,
    pixels_of_data,
    plain,
    read,
    samples_of,
    spec_of,
    written,
)

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.formats import FORMATS, FormatName
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import encoder_versions, shard_bytes, shard_stem

pytest.importorskip("pyarrow", reason="Parquet needs the extra [synthesis]")


def test_every_name_that_a_job_may_give_is_a_format() -> None:
    assert set(get_args(FormatName)) == set(FORMATS)


@any_output
@any_image
def test_what_is_written_is_read_back(output: OutputPart, spec: GeneratorSpec) -> None:
    samples = samples_of(output, spec)
    found = read(shard_bytes(samples, output, spec, DIGEST), output, spec, len(samples))
    assert [plain(sample) for sample in found] == [plain(sample) for sample in samples]
    for sample, pixels in zip(found, pixels_of(spec, len(samples)), strict=True):
        shown = pixels_of_data(sample.data, output, spec)
        np.testing.assert_array_equal(shown, pixels)


@any_output
def test_a_changed_pixel_is_seen_by_the_hash(output: OutputPart) -> None:
    (sample,) = samples_of(output, GREY, count=1)
    other = pixels_of(GREY, 1)[0].copy()
    other[3, 2] ^= 1
    changed = Sample(**{**sample.__dict__, "data": data_of(other, output, GREY)})
    (found,) = read(shard_bytes([changed], output, GREY, DIGEST), output, GREY, 1)
    assert found.sha256 == pixel_sha256(other) != sample.sha256


PROGRAM = """
import hashlib, os, sys, time
sys.path.insert(0, sys.argv[1])
os.umask(0o077)
from jobs import samples
time.sleep(1.1)  # past the next second of a clock that a file might hold
for output in [*samples.OUTPUTS, samples.FEATURES]:
    print(hashlib.sha256(samples.written(output, samples.RGB)).hexdigest())
"""


def test_the_bytes_are_the_same_in_another_process_place_and_time(tmp_path: Path) -> None:
    first = [written(output, RGB) for output in [*OUTPUTS, FEATURES]]
    environment = {
        **{key: value for key, value in os.environ.items() if key.startswith("PATH")},
        "TZ": "Pacific/Kiritimati", "USER": "nobody", "LOGNAME": "nobody", "HOME": str(tmp_path),
        "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "86400",
    }  # fmt: skip
    support = Path(samples.__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, str(support)]
    answer = subprocess.check_output(command, env=environment, cwd=tmp_path, text=True)
    assert answer.split() == [hashlib.sha256(data).hexdigest() for data in first]
    assert [written(output, RGB) for output in [*OUTPUTS, FEATURES]] == first


@any_output
def test_nothing_of_this_machine_is_in_a_file(output: OutputPart) -> None:
    data = written(output, RGB)
    for word in (os.uname().nodename, os.environ.get("USER", ""), tempfile.gettempdir(), "pandas"):
        assert not word or len(word) < 4 or word.encode() not in data


@any_output
def test_a_shard_of_no_samples_is_a_file_like_any_other(output: OutputPart) -> None:
    data = shard_bytes([], output, RGB, DIGEST)
    assert data == shard_bytes([], output, RGB, DIGEST)
    assert read(data, output, RGB, 0) == []


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 4]),
    st.integers(0, 6),
    st.sampled_from(OUTPUTS),
    st.integers(0, 2**31),
)
def test_any_size_makes_the_round_trip(
    height: int, width: int, channels: int, count: int, output: OutputPart, seed: int
) -> None:
    spec = spec_of(height, width, channels)
    images = pixels_of(spec, count, seed)
    samples = [
        Sample(place, seed + place, {}, "0" * 64, data_of(pixels, output, spec))
        for place, pixels in enumerate(images)
    ]
    found = read(shard_bytes(samples, output, spec, DIGEST), output, spec, len(samples))
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
    assert set(encoder_versions(OutputPart(), GREY)) == {"shards", "zlib"}
    assert set(encoder_versions(OutputPart(image="webp"), GREY)) == {"shards", "webp"}
    assert set(encoder_versions(OutputPart(image="raw"), GREY)) == {"shards"}
    assert set(encoder_versions(OutputPart(format="parquet"), GREY)) == {
        "shards",
        "pyarrow",
        "zlib",
    }
    assert set(encoder_versions(OutputPart(format="npz"), GREY)) == {"shards", "numpy"}
