"""WebDataset: a tar file, in which a sample is an image and a JSON beside it."""

import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from latentry.contract.files import parse_json
from latentry.contract.kinds.picture import PictureOutput
from latentry.contract.spec import GeneratorSpec
from latentry.contract.values.npy import npy_bytes, read_npy
from latentry.synthesis.sinks.image_data import image_from_data, most_image_bytes
from latentry.synthesis.sinks.sample import (
    Sample,
    inputs_from_json,
    most_text_bytes,
    pixel_sha256,
    scalar_for_json,
    text_lengths,
)
from latentry.synthesis.sinks.shard_format import ShardFormat

_NPY = "npy"
_BLOCK = tarfile.BLOCKSIZE


def _write(
    samples: Sequence[Sample], image_format: str, spec: GeneratorSpec, model_digest: str
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            key = f"{sample.index:010d}"
            # Sorted by name, as tar --sort=name would: json before png, npy after it.
            members = {"json": _sidecar(sample, model_digest)}
            if image_format == "raw":
                members[_NPY] = npy_bytes(image_from_data(sample.data, "raw", spec.image))
            else:
                members[image_format] = sample.data
            for suffix, data in sorted(members.items()):
                # A TarInfo's defaults: no time, no owner, mode 0644.
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _sidecar(sample: Sample, model_digest: str) -> bytes:
    facts = {
        "index": sample.index,
        "seed": sample.seed,
        **{name: scalar_for_json(value) for name, value in sample.inputs.items()},
        "model_digest": model_digest,
        "sha256": sample.sha256,
    }
    return json.dumps(facts, separators=(",", ":")).encode()


def _read(file: BinaryIO, image_format: str, spec: GeneratorSpec, count: int) -> Iterator[Sample]:
    image, lengths = spec.image, text_lengths(spec)
    most = most_image_bytes(image) + most_text_bytes(spec)
    for _ in range(count):
        # Sorted by name: json before png, npy after it.
        name, body = _read_member(file, most)
        members = {name.partition(".")[2]: body}
        name, body = _read_member(file, most)
        members[name.partition(".")[2]] = body
        facts = parse_json(members["json"])
        if image_format == "raw":
            data = read_npy(io.BytesIO(members[_NPY]), np.uint8, image.row_shape).tobytes()
        else:
            data = members[image_format]
        yield _found(facts, data, image_format, image, lengths)
    if file.read(_BLOCK).strip(b"\0"):
        raise ValueError("it holds more samples than its record says")


def _read_member(file: BinaryIO, most: int) -> tuple[str, bytes]:
    """Return name and bytes of a tar file's next member, a plain one of up to ``most`` bytes."""
    member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "strict")
    if member.type != tarfile.REGTYPE or not 0 <= member.size <= most:
        raise ValueError(f"its member {member.name!r} has {member.size:,} bytes")
    padded = math.ceil(member.size / _BLOCK) * _BLOCK
    body = file.read(padded)
    if len(body) != padded:
        raise ValueError("it is truncated")
    return member.name, body[: member.size]


def _found(
    facts: Any,
    data: bytes,
    image_format: str,
    image: PictureOutput,
    lengths: Mapping[str, tuple[int, int]],
) -> Sample:
    known = {"index", "seed", "model_digest", "sha256"}
    return Sample(
        index=facts["index"],
        seed=facts["seed"],
        inputs=inputs_from_json(
            {key: value for key, value in facts.items() if key not in known}, lengths
        ),
        sha256=pixel_sha256(image_from_data(data, image_format, image)),
        data=data,
    )


WEBDATASET = ShardFormat(".tar", write=_write, read=_read)
