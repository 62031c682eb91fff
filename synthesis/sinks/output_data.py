"""How a sample's outputs are written into a shard.

Pictures, masks and label maps as files or as pixels, or not at all; vectors and tensors as numbers.
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import features as pillow_features

from latentry.contract.errors import BadRequest
from latentry.contract.images import decode_image
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import FREE, OutputKind, TensorType, sized
from latentry.contract.spec import GeneratorSpec

ImageFormat = Literal["png", "webp", "raw", "none"]

MAIN = "image"
"""What shards call the main picture, whatever the model calls it."""

# What one sample's output may take beside its numbers; more is nothing that was written here.
_ROOM = 8 * 2**10
_MOST_WEBP_SIDE = 16_383


@dataclass(frozen=True)
class SampleOutput:
    """An output that makes a sample, and how a shard holds it.

    Attributes:
        item: The output.
        name: What shards call it: ``image`` for the main picture, else its own name.
        image_format: Of which format pictures are; ``raw`` for pixels, ``none`` for those that are
            not written.
        is_main: Whether it is the main picture.
    """

    item: OutputKind
    name: str
    image_format: str
    is_main: bool = False

    @property
    def is_written(self) -> bool:
        """Whether a shard holds it."""
        return self.image_format != "none"

    @cached_property
    def file_format(self) -> Format | None:
        """Of which format its files are; None where it is written as numbers, or not at all."""
        travels_in_files = any(name.endswith(".encoded") for name in self.item.tensors(Format.PNG))
        is_picture = self.dtype == np.uint8 and self.shape[2:] in ((), (1,), (3,), (4,))
        if self.image_format in ("raw", "none") or not (travels_in_files and is_picture):
            return None
        return self.item.file_format(Format(self.image_format))

    @cached_property
    def raw(self) -> TensorType:
        """Type of a row."""
        return self.item.raw

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's row, with free axes where pictures are of many sizes."""
        return self.raw.row_shape

    @property
    def largest(self) -> tuple[int, ...]:
        """The largest shape of a row."""
        return self.raw.largest or self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of a row."""
        return np.dtype(self.raw.dtype)

    @cached_property
    def most_bytes(self) -> int:
        """What one sample may take, however badly it compresses."""
        return 2 * self.item.row_bytes(Format.RAW) + _ROOM

    def data(self, row: NDArray[Any]) -> bytes:
        """Return a row as it is written: a file, or its numbers one after the other."""
        if self.file_format is None:
            return row.tobytes()
        return self.item.encode(row, self.file_format)

    def row(self, data: bytes) -> NDArray[Any]:
        """Return the row of what :meth:`data` gave; raises for what is none of this shape."""
        if self.file_format is None:
            return np.frombuffer(data, self.dtype).reshape(self.shape)
        channels = self.shape[2] if len(self.shape) == 3 else 1
        found = decode_image(data, channels, largest=(self.largest[0], self.largest[1]))
        row = found if len(self.shape) == 3 else found[:, :, 0]
        if not self.raw.fits(row.shape):
            raise ValueError(f"{self.name} is {sized(row.shape)}, not {sized(self.shape)}")
        return row


def sample_outputs(
    spec: GeneratorSpec, image_format: str, chosen: Collection[str] | None
) -> tuple[SampleOutput, ...]:
    """Return the outputs that make a sample, the main picture first.

    Args:
        spec: What the model gives.
        image_format: How pictures are written; ``none`` is meant of the main picture alone.
        chosen: The outputs' names; None for all.
    """
    found = []
    for item in spec.outputs:
        is_main = item is spec.picture
        how = "raw" if image_format == "none" and not is_main else image_format
        if chosen is None or item.name in chosen:
            found.append(SampleOutput(item, MAIN if is_main else item.name, how, is_main))
    return tuple(sorted(found, key=lambda output: not output.is_main))


def check_outputs(
    spec: GeneratorSpec, chosen: Sequence[str] | None, image_format: str, model: str
) -> None:
    """Check that a job can write what a model gives.

    Raises:
        BadRequest: It gives no such output, or something that cannot be written like this.
    """
    there = {item.name: item for item in spec.outputs}
    for name in chosen or ():
        if name not in there:
            raise BadRequest(f"{model} gives no {name}; it gives {', '.join(there)}")
    outputs = sample_outputs(spec, image_format, chosen)
    for output in outputs:
        if FREE in output.shape and output.file_format is None:
            raise BadRequest(
                f"{model} gives {output.item.name} of many sizes ({sized(output.shape)}), which "
                'are written as files: format = "webdataset" or "parquet", image = "png" or '
                '"webp"; or leave it out of [output] outputs'
            )
        if output.file_format is Format.WEBP and max(output.largest) > _MOST_WEBP_SIDE:
            raise BadRequest(
                f"{model} gives {output.item.name} of up to {sized(output.largest)}; WebP files "
                f'have sides of up to {_MOST_WEBP_SIDE:,} pixels: image = "png"'
            )
    if image_format == "none" and len(outputs) > 1:
        raise BadRequest(
            f'image = "none" leaves only features of a sample, and {model} gives '
            f"{', '.join(output.item.name for output in outputs)}; give outputs = "
            f'["{outputs[0].item.name}"], or another image'
        )


def sample_sha256(outputs: Sequence[SampleOutput], rows: Iterable[NDArray[Any]]) -> str:
    """Return the SHA-256 of a sample: of the bytes of its outputs, one after the other.

    That of a sample of one picture is the SHA-256 of its pixels, as in the goldens. Before a
    picture of free size stands its shape, as ``[32,16,3]``.
    """
    found = hashlib.sha256()
    for output, row in zip(outputs, rows, strict=True):
        if FREE in output.shape:
            found.update(json.dumps(row.shape, separators=(",", ":")).encode())
        found.update(np.ascontiguousarray(row).data)
    return found.hexdigest()


def sha256_of_data(outputs: Sequence[SampleOutput], data: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of a sample of which all is written, by what a shard holds of it."""
    return sample_sha256(outputs, [output.row(data[output.name]) for output in outputs])


def image_encoder_versions(outputs: Sequence[SampleOutput]) -> dict[str, str]:
    """Return the versions of the libraries on which the bytes of pictures depend."""
    formats = {output.file_format for output in outputs}
    versions = {}
    if Format.PNG in formats:
        versions["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    if Format.WEBP in formats:
        versions["webp"] = str(pillow_features.version_module("webp"))
    return versions
