import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from latentry.contract.errors import BadRequest
from latentry.contract.images import (
    Uint8,
    decode_image,
    encode_image,
    grid_from_images,
    pixels_from_picture,
    png_from_uint8,
    png_with_text,
    uint8_from_sample,
)
from latentry.contract.kinds.formats import Format, format_from_text

IMAGES = st.sampled_from([(5, 7, 3), (4, 4, 1), (1, 1, 3), (3, 5, 4)]).flatmap(
    lambda s: arrays(np.uint8, s)
)


@given(IMAGES, st.sampled_from([Format.PNG, Format.WEBP]))
def test_lossless_formats_give_the_image_back(image: Uint8, image_format: Format) -> None:
    decoded = decode_image(encode_image(image, image_format), image.shape[2])
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("image_format", [Format.PNG, Format.JPEG, Format.WEBP])
def test_a_larger_file_is_not_unpacked(image_format: Format) -> None:
    data = encode_image(np.zeros((4, 6, 3), np.uint8), image_format)
    assert decode_image(data, 3, (4, 6)).shape == (4, 6, 3)
    assert decode_image(data, 3, (9, 6)).shape == (4, 6, 3)
    for largest in ((6, 4), (3, 7), (4, 5)):
        with pytest.raises(ValueError, match="it is an image of 4 x 6, over"):
            decode_image(data, 3, largest)


def test_png_carries_its_text() -> None:
    data = png_with_text(png_from_uint8(np.zeros((2, 2, 3), np.uint8)), {"latentry:seed": "7"})
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.text == {"latentry:seed": "7"}  # type: ignore[attr-defined]


def test_the_range_of_the_network_fills_the_bytes() -> None:
    sample = np.array([-9, -1, 0, 0.999, 1, 9], np.float32).reshape(1, 1, 2, 3)
    assert uint8_from_sample(sample).ravel().tolist() == [0, 0, 128, 255, 255, 255]


@given(st.integers(1, 30))
def test_a_grid_holds_every_image_once(count: int) -> None:
    images = np.arange(1, count + 1, dtype=np.uint8).repeat(4).reshape(count, 2, 2, 1)
    grid = grid_from_images(images)
    found = grid[::2, ::2, 0].ravel()
    assert found[:count].tolist() == list(range(1, count + 1))
    assert not found[count:].any()


def test_an_unknown_format_lists_those_there_are() -> None:
    with pytest.raises(BadRequest, match="'gif' is unknown; use one of raw, float, png, jpeg, web"):
        format_from_text("gif")


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG file, each checked, as a strict reader finds them."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        (crc,) = struct.unpack_from(">I", png, place + 8 + length)
        assert crc == zlib.crc32(kind + data), kind
        chunks.append((kind, data))
        place += 12 + length
    assert place == len(png)
    return chunks


SIZES = [(1, 1), (1, 5), (5, 1), (2, 4097), (4097, 2), (1, 65_536), (700, 900)]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_png_of_any_size_is_what_a_strict_reader_takes(
    height: int, width: int, channels: int, kind: str
) -> None:
    shape = (height, width, channels)
    random = np.random.RandomState(height * width + channels)
    image = {
        "noise": random.randint(0, 256, shape),
        "flat": np.full(shape, 255),
        "ramp": np.arange(height * width * channels).reshape(shape) % 256,
    }[kind].astype(np.uint8)
    png = png_from_uint8(image)
    with Image.open(io.BytesIO(png)) as picture:
        picture.verify()  # the checksums of every chunk
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.format, picture.size) == ("PNG", (width, height))
        assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        np.testing.assert_array_equal(np.asarray(picture).reshape(shape), image)
    (head, header), (_, data), (end, rest) = chunks_of(png)
    assert (head, end, rest) == (b"IHDR", b"IEND", b"")
    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, colour_type, 0, 0, 0)
    # No byte too many: libpng warns of a stream that is longer than its rows.
    rows = zlib.decompress(data)
    assert len(rows) == height * (1 + width * channels)
    assert png_from_uint8(image) == png


def test_pixels_need_not_lie_in_a_row() -> None:
    image = np.random.RandomState(3).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    for view in (image[::2], image[:, ::-1], image[..., ::-1], image.transpose(1, 0, 2)):
        np.testing.assert_array_equal(decode_image(png_from_uint8(view), 3), view)


def test_text_goes_between_the_header_and_the_pixels() -> None:
    png = png_with_text(png_from_uint8(np.zeros((2, 2, 1), np.uint8)), {"a": "1", "b": "2"})
    assert [kind for kind, _ in chunks_of(png)] == [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"]


def test_transparent_pictures_have_no_jpeg() -> None:
    with pytest.raises(BadRequest, match="jpeg knows no transparency; ask for png or webp"):
        encode_image(np.zeros((2, 2, 4), np.uint8), Format.JPEG)


def picture_of(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return a PIL image whose pixels all differ."""
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    levels = np.arange(np.prod(shape)).reshape(shape)
    return Image.fromarray(levels.astype(np.uint8))


def file_of(picture: Image.Image, image_format: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format, **more)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP"])
def test_a_picture_may_be_held_in_anything(image_format: str, tmp_path: Path) -> None:
    picture = picture_of(4, 5)
    data = file_of(picture, image_format, lossless=True)
    (tmp_path / "picture").write_bytes(data)  # the content decides, not the name
    for held in (picture, data, bytearray(data), tmp_path / "picture"):
        pixels = pixels_from_picture("image", held, 3)
        assert pixels.shape == (4, 5, 3)
        np.testing.assert_array_equal(pixels, np.asarray(picture))


@pytest.mark.parametrize(("mode", "channels"), [("L", 3), ("RGB", 1), ("RGBA", 3), ("RGB", 4)])
def test_channels_are_those_that_are_taken(mode: str, channels: int) -> None:
    picture = picture_of(3, 4, mode)
    if mode == "RGBA":
        picture.putalpha(255)
    pixels = pixels_from_picture("image", picture, channels)
    assert pixels.shape == (3, 4, channels)
    expected = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    np.testing.assert_array_equal(pixels.reshape(expected.shape), expected)


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    picture = picture_of(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned = pixels_from_picture("image", file_of(picture, "PNG", exif=exif), 3)
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(picture), -1))


def palette() -> Image.Image:
    """Return 2 x 2 pixels of the palette's colours 0, 1, 2 and 0, which are red, green, grey."""
    picture = Image.new("P", (2, 2))
    picture.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9])
    for place, index in enumerate((0, 1, 2, 0)):
        picture.putpixel((place % 2, place // 2), index)
    return picture


def test_a_palette_is_colours_in_a_picture_and_labels_in_a_label_map() -> None:
    for held in (palette(), file_of(palette())):
        colours = pixels_from_picture("image", held, 3)
        assert colours.tolist() == [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [255, 0, 0]]]
        labels = pixels_from_picture("map", held, 1, labels=True)
        assert labels[:, :, 0].tolist() == [[0, 1], [2, 0]]
    bits = Image.fromarray(np.eye(2, dtype=np.bool_))
    assert pixels_from_picture("map", bits, 1, labels=True)[:, :, 0].tolist() == [[1, 0], [0, 1]]
    assert pixels_from_picture("mask", bits, 1)[:, :, 0].tolist() == [[255, 0], [0, 255]]


def see_through() -> Image.Image:
    picture = picture_of(2, 2, "RGBA")
    picture.putpixel((1, 1), (1, 2, 3, 254))
    return picture


@pytest.mark.parametrize(
    ("held", "options", "words"),
    [
        (b"", {}, "image cannot be read as PNG, JPEG, WebP or BMP: it is none of them, or damaged"),
        (b"GIF89a", {}, "image cannot be read as PNG, JPEG, WebP or BMP"),
        (file_of(picture_of(2, 2), "GIF"), {}, "image cannot be read as PNG, JPEG, WebP or BMP"),
        (file_of(picture_of(9, 9))[:55], {}, "image cannot be read as PNG, JPEG, WebP or BMP"),
        (
            Path("/nowhere/a.png"),
            {},
            r"image \(/nowhere/a.png\) cannot be read .*: No such file or directory$",
        ),
        (Path("/dev/null"), {}, r"image \(/dev/null\) cannot be read as PNG, JPEG, WebP or BMP"),
        (Image.new("I", (2, 2)), {}, "image has mode I; 8 bits a channel are taken"),
        (Image.new("I;16", (2, 2)), {}, "image has mode I;16; 8 bits a channel are taken"),
        (Image.new("F", (2, 2)), {}, "image has mode F; 8 bits a channel are taken"),
        (see_through(), {}, "image is transparent; lay it on a background first"),
        (file_of(see_through(), "WEBP", lossless=True), {}, "image is transparent"),
        (Image.new("L", (2**13, 2**13 + 1)), {}, "image has 8193 x 8192 pixels, over 67108864"),
        (picture_of(2, 2), {"labels": True}, "mode RGB; label maps have grey levels or a palette"),
    ],
)
def test_what_is_no_picture_is_refused(held: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        pixels_from_picture("image", held, 3, **options)


def png_of_16_bits() -> bytes:
    """Return an RGB PNG of 2 x 2 pixels with 16 bits a channel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(12)) * 2)
    chunks = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def test_colours_of_16_bits_are_not_cut_in_silence() -> None:
    with pytest.raises(BadRequest, match="image has mode RGB;16B; 8 bits a channel are taken"):
        pixels_from_picture("image", png_of_16_bits(), 3)


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_a_picture_of_another_size_is_not_unpacked(format_: str) -> None:
    def refuse(height: int, width: int) -> None:
        if (height, width) != (4, 6):
            raise BadRequest(f"{height} x {width}")

    turn = Image.Exif()
    turn[0x0112] = 6
    for exif, size in ((None, (4, 6)), (turn, (6, 4))):
        options = {"exif": exif} if exif else {}
        data = file_of(picture_of(*size), format_, **options)
        assert pixels_from_picture("image", data, 3, check_size=refuse).shape == (4, 6, 3)
    cut = file_of(picture_of(40, 30), format_)[:-40]  # there is not enough to unpack
    with pytest.raises(BadRequest, match="^40 x 30$"):
        pixels_from_picture("image", cut, 3, check_size=refuse)


def test_a_file_that_says_it_is_huge_is_not_unpacked() -> None:
    data = bytearray(file_of(Image.new("L", (8, 8))))
    for side, words in ((10_000, "10000 x 10000"), (60_000, "3600000000 pixels")):
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))  # of the header
        with pytest.raises(BadRequest, match=f"image .*{words}"):
            pixels_from_picture("image", bytes(data), 1)
        with pytest.raises((ValueError, OSError), match=words):
            decode_image(bytes(data), 1, (8, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_that_a_turned_file_will_have_is_what_is_checked(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    asked: list[tuple[int, int]] = []
    data = file_of(picture_of(6, 4), "JPEG", exif=exif)
    pixels = pixels_from_picture("image", data, 3, check_size=lambda *size: asked.append(size))
    assert asked == [pixels.shape[:2]] == [(4, 6) if orientation >= 5 else (6, 4)]
