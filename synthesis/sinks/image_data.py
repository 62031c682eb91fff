"""How a sample's image is written into a shard: as a file, as pixels, or not at all."""

import math
import zlib
from typing import Literal

import numpy as np
from PIL import features as pillow_features

from latentry.contract.images import Uint8, decode_image, encode_image
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.picture import PictureOutput, most_of

ImageFormat = Literal["png", "webp", "raw", "none"]

# What one sample may take beside its pixels; more is nothing that was written here.
_ROOM = 8 * 2**10


def data_from_image(image: Uint8, image_format: str) -> bytes:
    """Return uint8 [H, W, C] as ``png`` or ``webp`` file, as ``raw`` pixels, or nothing."""
    if image_format == "none":
        return b""
    if image_format == "raw":
        return image.tobytes()
    return encode_image(image, Format(image_format))


def image_from_data(data: bytes, image_format: str, image: PictureOutput) -> Uint8:
    """Return uint8 [H, W, C] of what :func:`data_from_image` gave."""
    if image_format == "raw":
        return np.frombuffer(data, np.uint8).reshape(image.row_shape)
    return decode_image(data, image.channels, size=(most_of(image.height), most_of(image.width)))


def most_image_bytes(image: PictureOutput) -> int:
    """Return what one sample's image may take as a file, however badly it compresses."""
    return 2 * math.prod(image.row_shape) + _ROOM


def image_encoder_versions(image_format: str) -> dict[str, str]:
    """Return the versions of the libraries on which an image's bytes depend."""
    if image_format == "png":
        return {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    if image_format == "webp":
        return {"webp": str(pillow_features.version_module("webp"))}
    return {}
