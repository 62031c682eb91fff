"""Shards of samples that were made of pictures: their texts are read back, and nothing else."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jobs.samples import DIGEST, any_output, data_of, pixel_sha256, pixels_of, read
from specs import image, make_spec, z

from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.facts import MOST_PATH
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import most_shard_bytes, shard_bytes

pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")

PHOTO = {**image(4, 4), "name": "photo"}
SPEC = make_spec([z(4), PHOTO], [image(4, 4, 1)])
LONGEST = "\x1b🖼/" * (MOST_PATH // 3) + "a"


def samples_of(output: OutputPart, *paths: Any) -> list[Sample]:
    """Return a sample of each of these paths."""
    images = pixels_of(SPEC, len(paths))
    facts = [{"photo_path": path, "photo_sha256": "ab" * 32} for path in paths]
    return [
        Sample(place, place, facts[place], pixel_sha256(pixels), data_of(pixels, output, SPEC))
        for place, pixels in enumerate(images)
    ]


@any_output
def test_paths_of_any_length_and_character_are_read_back(output: OutputPart) -> None:
    samples = samples_of(output, "a.png", LONGEST, 'b/"\n\\.png')
    data = shard_bytes(samples, output, SPEC, DIGEST)
    found = read(data, output, SPEC, 3)
    assert [sample.inputs for sample in found] == [sample.inputs for sample in samples]
    assert len(LONGEST) == MOST_PATH
    assert len(data) <= most_shard_bytes(output, SPEC, 3)


@any_output
def test_a_shard_of_which_all_pictures_were_bad_is_a_file_like_any_other(
    output: OutputPart,
) -> None:
    assert read(shard_bytes([], output, SPEC, DIGEST), output, SPEC, 0) == []


CHANGES: dict[str, Callable[[Sample], dict[str, Any]]] = {
    "a long path": lambda _: {"photo_path": "x" * (MOST_PATH * 4 + 1), "photo_sha256": "0" * 64},
    "an empty path": lambda _: {"photo_path": "", "photo_sha256": "0" * 64},
    "a number for a path": lambda _: {"photo_path": np.int64(5), "photo_sha256": "0" * 64},
    "a short hash": lambda _: {"photo_path": "a.png", "photo_sha256": "0" * 63},
    "a number for a hash": lambda _: {"photo_path": "a.png", "photo_sha256": np.float32(5)},
}


@any_output
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_path_or_no_hash_is_refused(output: OutputPart, name: str) -> None:
    (sample,) = samples_of(output, "a.png")
    changed = dataclasses.replace(sample, inputs=CHANGES[name](sample))
    data = shard_bytes([changed], output, SPEC, DIGEST)
    with pytest.raises(Exception):  # noqa: B017, PT011  # of any kind; the caller takes all
        read(data, output, SPEC, 1)


def test_a_sidecar_has_the_path_as_it_is() -> None:
    output = OutputPart()
    data = shard_bytes(samples_of(output, "ü/\x1b.png"), output, SPEC, DIGEST)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.extractfile("0000000000.json")
        assert member
        assert json.load(member)["photo_path"] == "ü/\x1b.png"
