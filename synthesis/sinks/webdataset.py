"""WebDataset: a tar file, in which a sample is a file for each output and a JSON beside them."""

import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from latentry.contract.files import parse_json
from latentry.contract.spec import GeneratorSpec
from latentry.contract.values.npy import npy_bytes, read_npy
from latentry.synthesis.sinks.facts import Facts, value_for_json
from latentry.synthesis.sinks.output_data import MAIN, SampleOutput, sha256_of_data
from latentry.synthesis.sinks.sample import (
    Sample,
)
from latentry.synthesis.sinks.shard_format import ShardFormat

_JSON, _NPY = "json", "npy"
_ROOM_OF_JSON = 8 * 2**10  # beside its texts
_BLOCK = tarfile.BLOCKSIZE


def _write(
    samples: Sequence[Sample],
    outputs: Sequence[SampleOutput],
    spec: GeneratorSpec,
    model_digest: str,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            members = {_JSON: _sidecar(sample, model_digest)}
            for output in outputs:
                data = sample.data[output.name]
                if output.file_format is None:
                    data = npy_bytes(output.row(data))
                members[_suffix(output)] = data
            # Sorted by name, as tar --sort=name would: json before png, npy after it.
            for suffix, data in sorted(members.items()):
                # A TarInfo's defaults: no time, no owner, mode 0644.
                member = tarfile.TarInfo(f"{sample.index:010d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _suffix(output: SampleOutput) -> str:
    """Return what an output's file is called after a sample's key."""
    kind = _NPY if output.file_format is None else output.file_format.value
    return kind if output.name == MAIN else f"{output.name}.{kind}"


def _sidecar(sample: Sample, model_digest: str) -> bytes:
    facts = {
        "index": sample.index,
        "seed": sample.seed,
        **{name: value_for_json(value) for name, value in sample.inputs.items()},
        "model_digest": model_digest,
        "sha256": sample.sha256,
    }
    return json.dumps(facts, separators=(",", ":")).encode()


def _read(
    file: BinaryIO, outputs: Sequence[SampleOutput], spec: GeneratorSpec, count: int
) -> Iterator[Sample]:
    facts = Facts(spec)
    most = {_JSON: facts.most_bytes + _ROOM_OF_JSON}
    most |= {_suffix(output): output.most_bytes for output in outputs}
    for _ in range(count):
        members = dict(_read_member(file, most) for _ in most)
        yield _found(members, outputs, facts)
    if file.read(_BLOCK).strip(b"\0"):
        raise ValueError("it holds more samples than its record says")


def _read_member(file: BinaryIO, most: Mapping[str, int]) -> tuple[str, bytes]:
    """Return suffix and bytes of a tar file's next member, a plain one.

    ``most`` says how many bytes it may have, by its suffix.
    """
    member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "strict")
    suffix = member.name.partition(".")[2]
    if member.type != tarfile.REGTYPE or not 0 <= member.size <= most.get(suffix, -1):
        raise ValueError(f"its member {member.name!r} has {member.size:,} bytes")
    padded = math.ceil(member.size / _BLOCK) * _BLOCK
    body = file.read(padded)
    if len(body) != padded:
        raise ValueError("it is truncated")
    return suffix, body[: member.size]


def _found(
    members: Mapping[str, bytes],
    outputs: Sequence[SampleOutput],
    facts: Facts,
) -> Sample:
    said = parse_json(members[_JSON])
    known = {"index", "seed", "model_digest", "sha256"}
    data = {}
    for output in outputs:
        body = members[_suffix(output)]
        if output.file_format is None:
            body = read_npy(io.BytesIO(body), output.dtype, output.shape).tobytes()
        data[output.name] = body
    return Sample(
        index=said["index"],
        seed=said["seed"],
        inputs=facts.read({name: value for name, value in said.items() if name not in known}),
        sha256=sha256_of_data(outputs, data),
        data=data,
    )


WEBDATASET = ShardFormat(".tar", write=_write, read=_read)
