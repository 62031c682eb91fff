"""Images at the edge: uint8 [H, W, C], encoded as PNG, JPEG or WebP, put together as a grid."""

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from latentry.contract.errors import BadRequest
from latentry.contract.files import read_regular
from latentry.contract.kinds.formats import Format

Uint8 = NDArray[np.uint8]

JPEG_QUALITY = 95
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = len(_PNG_SIGNATURE) + 25  # and the header chunk
_PNG_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMATS = ("PNG", "JPEG", "WEBP")
_PICTURE_FORMATS = (*_FORMATS, "BMP")  # of pictures that go in; nothing is written as BMP
MOST_FILE_BYTES = 2**28
"""The largest file of a picture that goes in."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""What the names of such files end in, in any case, where a folder is looked through."""

_MOST_PIXELS = 2**26
_PNG_UP = 2
_ORIENTATION = 0x0112  # of EXIF; its values from 5 on turn by a quarter
_LYING = range(5, 9)


def uint8_from_sample(sample: NDArray[np.float32]) -> Uint8:
    """Return uint8 [N, H, W, C] of a network's float32 [N, C, H, W] in [-1, 1].

    ``clamp(x * 127.5 + 128, 0, 255)`` and truncation, as StyleGAN3's ``gen_images.py`` does.
    """
    scaled = np.clip(sample * np.float32(127.5) + np.float32(128), 0, 255)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1)).astype(np.uint8)


def pil_from_uint8(image: Uint8) -> Image.Image:
    """Return a PIL image of uint8 [H, W, 1, 3 or 4]."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def encode_image(image: Uint8, image_format: Format) -> bytes:
    """Return uint8 [H, W, 1, 3 or 4] as a file.

    PNG and WebP are lossless; JPEG has quality 95.
    """
    if image_format is Format.PNG:
        return png_from_uint8(image)
    buffer = io.BytesIO()
    picture = pil_from_uint8(image)
    if image_format is Format.JPEG:
        if image.shape[2] == 4:
            raise BadRequest("jpeg knows no transparency; ask for png or webp")
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    elif image_format is Format.WEBP:
        # Exact, as the colours of transparent pixels are else made up anew.
        picture.save(buffer, "WEBP", lossless=True, exact=True, method=0)
    else:
        raise BadRequest(f"format {image_format} is not a file format")
    return buffer.getvalue()


def png_from_uint8(image: Uint8) -> bytes:
    """Return uint8 [H, W, 1, 3 or 4] as a PNG file (W3C PNG, third edition).

    Every row is filtered with Up and compressed with zlib's level 1 and run lengths. For generated
    images that is 2 to 4 times faster than Pillow's level 1, which tries every filter on every row,
    and the files are smaller (docs/performance.md).
    """
    height, width, channels = image.shape
    pixels = image.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = _PNG_UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    data = compressor.compress(rows.data) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = (_png_chunk(b"IHDR", header), _png_chunk(b"IDAT", data), _png_chunk(b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(chunks)


def is_png(data: bytes) -> bool:
    """Whether a file begins as PNG files do."""
    return data.startswith(_PNG_SIGNATURE)


def png_with_text(png: bytes, text: Mapping[str, str]) -> bytes:
    """Return a PNG file with ``text`` (Latin-1) as text chunks, the pixels untouched."""
    chunks = [
        _png_chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1"))
        for key, value in text.items()
    ]
    return png[:_PNG_HEAD] + b"".join(chunks) + png[_PNG_HEAD:]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def decode_image(data: bytes, channels: int, largest: tuple[int, int] | None = None) -> Uint8:
    """Return uint8 [H, W, channels] of a PNG, JPEG or WebP file; ``channels`` is 1, 3 or 4.

    WebP knows no grey images; one that was grey comes back so.

    Args:
        data: The file.
        channels: How many to return.
        largest: Height and width that it may have; a file that says more is not unpacked.

    Raises:
        ValueError: It is larger.
        OSError: It is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size decides
        try:
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:  # it alone is no OSError
            raise OSError(str(error)) from error
        with picture:
            if largest is not None and (picture.height > largest[0] or picture.width > largest[1]):
                found = f"{picture.height} x {picture.width}"
                raise ValueError(f"it is an image of {found}, over {largest[0]} x {largest[1]}")
            pixels = np.asarray(picture.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def resized(pixels: Uint8, height: int, width: int, *, labels: bool = False) -> Uint8:
    """Return ``pixels``, [H, W] or [H, W, C], scaled to another size.

    By Pillow, bicubic and over all pixels that one comes from; with ``labels`` the nearest, as
    there is no label between two.
    """
    method = Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC
    flat = pixels.reshape(pixels.shape[:2]) if pixels.shape[2:] == (1,) else pixels
    scaled = np.asarray(Image.fromarray(flat).resize((width, height), method))
    return scaled.reshape(height, width, *pixels.shape[2:])


def pixels_from_picture(
    name: str,
    picture: Any,
    channels: int,
    *,
    labels: bool = False,
    check_size: Callable[[int, int], None] = lambda height, width: None,
) -> Uint8:
    """Return uint8 [H, W, channels] of what a caller holds a picture in, turned as its EXIF says.

    Args:
        name: Of the input that it is for, for the message.
        picture: A PIL image, a path to a PNG, JPEG, WebP or BMP file, or such a file's bytes.
        channels: How many to return: 1, 3 or 4.
        labels: Whether it is a label map: of a palette the indexes are returned, not the colours.
        check_size: Called with height and width, as they will be, before anything is unpacked.

    Raises:
        BadRequest: It is no picture, has more than 8 bits a channel, is transparent where no
            transparency is taken, or is a label map with neither grey levels nor a palette.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size decides
            if isinstance(picture, Image.Image):
                _check_picture(name, picture, check_size)
                return _pixels(name, picture, channels, labels)
            if isinstance(picture, os.PathLike):
                name = f"{name} ({os.fspath(picture)})"
                picture = read_regular(Path(picture), most=MOST_FILE_BYTES)
            with Image.open(io.BytesIO(picture), formats=_PICTURE_FORMATS) as opened:
                _check_picture(name, opened, check_size)
                return _pixels(name, opened, channels, labels)
    except BadRequest:
        raise
    except Exception as error:  # what a damaged file raises shares no base
        reason = _reason(error)
        raise BadRequest(f"{name} cannot be read as PNG, JPEG, WebP or BMP: {reason}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text names an object in memory
        return "it is none of them, or damaged"
    return getattr(error, "strerror", None) or str(error)


def _check_picture(name: str, picture: Image.Image, check_size: Callable[[int, int], None]) -> None:
    """Check what a file says of itself before it is unpacked."""
    if picture.width * picture.height > _MOST_PIXELS:
        size = f"{picture.height} x {picture.width}"
        raise BadRequest(f"{name} has {size} pixels, over {_MOST_PIXELS}")
    # Of colours with 16 bits Pillow says "RGB", and cuts them as it unpacks them.
    packed = [tile[3] for tile in getattr(picture, "tile", ()) if isinstance(tile[3], str)]
    deep = [mode for mode in (picture.mode, *packed) if mode[:1] in ("I", "F") or "16" in mode]
    if deep:
        raise BadRequest(f"{name} has mode {deep[0]}; 8 bits a channel are taken")
    sizes = [(picture.height, picture.width), (picture.width, picture.height)]
    # In a PNG file it may stand behind the pixels, for which all would be unpacked.
    if picture.format != "PNG" or "exif" in picture.info:
        sizes = [sizes[picture.getexif().get(_ORIENTATION, 1) in _LYING]]
    refusals = [refusal for size in sizes if (refusal := _refusal(check_size, size))]
    if len(refusals) == len(sizes):
        raise refusals[0]


def _refusal(check_size: Callable[[int, int], None], size: tuple[int, int]) -> BadRequest | None:
    try:
        check_size(*size)
    except BadRequest as refusal:
        return refusal
    return None


def _pixels(name: str, picture: Image.Image, channels: int, labels: bool) -> Uint8:
    turned = ImageOps.exif_transpose(picture)
    if labels:
        if turned.mode not in ("1", "L", "P"):
            raise BadRequest(
                f"{name} has mode {turned.mode}; label maps have grey levels or a palette"
            )
        return np.asarray(turned).astype(np.uint8)[:, :, None]
    if channels < 4 and turned.has_transparency_data:
        alpha = np.asarray(turned.convert("RGBA"))[:, :, 3]
        if (alpha < 255).any():
            raise BadRequest(f"{name} is transparent; lay it on a background first")
    pixels = np.asarray(turned.convert(_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def grid_from_images(images: Sequence[Uint8] | Uint8, columns: int | None = None) -> Uint8:
    """Return one uint8 picture of N images [H, W, C], row by row, as square as possible."""
    stack = np.asarray(images)
    count, height, width, channels = stack.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = stack
    tiles = padded.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles.reshape(rows * height, columns * width, channels))
