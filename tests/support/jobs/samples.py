"""Samples for shards, shards of them, and files that are none of ours."""

import hashlib
import io
import json
import resource
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from specs import classes, image, make_spec, psi, z

from latentry.contract.spec import GeneratorSpec
from latentry.synthesis.job import OutputPart
from latentry.synthesis.sinks.output_data import MAIN, sample_sha256
from latentry.synthesis.sinks.sample import Sample
from latentry.synthesis.sinks.shards import read_shard, shard_bytes

DIGEST = "d" * 64


def spec_of(height: int, width: int, channels: int) -> GeneratorSpec:
    """Return what a model takes and gives whose images are of this size."""
    inputs = [z(8), classes("cat", "dog", "emu"), psi()]
    return make_spec(inputs, [image(height, width, channels)])


GREY = spec_of(6, 5, 1)
SMALL = spec_of(4, 4, 1)
RGB = spec_of(4, 7, 3)
RGBA = spec_of(5, 3, 4)
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
any_image = pytest.mark.parametrize("spec", [GREY, RGB, RGBA], ids=["grey", "rgb", "rgba"])


def pixels_of(spec: GeneratorSpec, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return random images, uint8 [count, H, W, C]."""
    shape = (count, *spec.image.row_shape)
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of a sample that is a picture and nothing else."""
    return sample_sha256(OutputPart().of_sample(spec_of(*pixels.shape)), [pixels])


def data_of(pixels: NDArray[np.uint8], output: OutputPart, spec: GeneratorSpec) -> dict[str, bytes]:
    """Return a picture as a sample's data."""
    picture = output.of_sample(spec)[0]
    return {MAIN: picture.data(pixels)} if picture.is_written else {}


def pixels_of_data(
    data: Mapping[str, bytes], output: OutputPart, spec: GeneratorSpec
) -> NDArray[np.uint8]:
    """Return the picture of a sample's data, uint8 [H, W, C]."""
    return output.of_sample(spec)[0].row(data[MAIN])


def samples_of(output: OutputPart, spec: GeneratorSpec, count: int = 7) -> list[Sample]:
    """Return samples with every input of one number, from index 1000 on."""
    return [
        Sample(
            index=1000 + place,
            seed=2**32 - 1 - place,
            inputs={"class_label": np.int64(place % 3), "truncation_psi": np.float32(0.7)},
            sha256=pixel_sha256(pixels),
            data=data_of(pixels, output, spec),
            features=np.arange(4, dtype=np.float32) + place
            if output.image == "none"
            else np.empty(0, np.float32),
        )
        for place, pixels in enumerate(pixels_of(spec, count))
    ]


def written(output: OutputPart, spec: GeneratorSpec, count: int = 7) -> bytes:
    """Return a shard of them."""
    return shard_bytes(samples_of(output, spec, count), output, spec, DIGEST)


def read(data: bytes, output: OutputPart, spec: GeneratorSpec, count: int = 7) -> list[Sample]:
    """Return the samples in a shard."""
    return list(read_shard(io.BytesIO(data), output, spec, count))


def plain(sample: Sample) -> dict[str, Any]:
    """Return what a shard says of a sample, whatever the types."""
    inputs = {name: round(float(value), 6) for name, value in sample.inputs.items()}
    return {"index": sample.index, "seed": sample.seed, "sha256": sample.sha256, **inputs}


# What a WebDataset says of a small sample.
FACTS = json.dumps({"index": 0, "seed": 0, "sha256": "0" * 64}).encode()


BLACK = hashlib.sha256(bytes(16)).hexdigest()
"""SHA-256 of the pixels of a small black image."""


def png_of(height: int, width: int) -> bytes:
    """Return a grey PNG that says that it has this size, whatever is in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(2**22))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def refuse(data: bytes, kind: str, count: int = 1) -> None:
    """See that a file is not taken for a shard of ``count`` small samples, and not unpacked."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = OutputPart.model_validate({"format": kind})
    with pytest.raises(Exception):  # noqa: B017, PT011  # of any kind; the caller takes all
        list(read_shard(io.BytesIO(data), output, SMALL, count))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
