import io
import struct
import zlib

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
    is_same_but_for_rounding,
    png_from_uint8,
    png_with_text,
    uint8_from_sample,
)
from latentry.contract.wire import Format, format_from_text

IMAGES = st.sampled_from([(5, 7, 3), (4, 4, 1), (1, 1, 3)]).flatmap(lambda s: arrays(np.uint8, s))


@given(IMAGES, st.sampled_from([Format.PNG, Format.WEBP]))
def test_lossless_formats_give_the_image_back(image: Uint8, image_format: Format) -> None:
    decoded = decode_image(encode_image(image, image_format), image.shape[2])
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("image_format", [Format.PNG, Format.JPEG, Format.WEBP])
def test_a_file_of_another_size_is_not_unpacked(image_format: Format) -> None:
    data = encode_image(np.zeros((4, 6, 3), np.uint8), image_format)
    assert decode_image(data, 3, (4, 6)).shape == (4, 6, 3)
    for size in ((6, 4), (4, 7), (5, 6)):
        with pytest.raises(ValueError, match="it is an image of 4 x 6, not"):
            decode_image(data, 3, size)


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


@pytest.mark.parametrize("channels", [1, 3])
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
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(picture).reshape(shape), image)
    (head, header), (_, data), (end, rest) = chunks_of(png)
    assert (head, end, rest) == (b"IHDR", b"IEND", b"")
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
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


@pytest.mark.parametrize(
    ("shape", "elements", "levels", "is_same"),
    [
        ((8, 8, 1), 0, 0, True),
        ((8, 8, 1), 1, 1, True),
        ((8, 8, 1), 1, -1, True),
        ((8, 8, 1), 1, 2, False),
        ((8, 8, 1), 2, 1, False),
        ((8, 32, 32, 1), 8, 1, True),
        ((8, 32, 32, 1), 8, 2, False),
        ((8, 32, 32, 1), 9, -1, False),
    ],
)
def test_rounding_moves_one_element_in_a_thousand_by_one_level(
    shape: tuple[int, ...], elements: int, levels: int, is_same: bool
) -> None:
    images = np.full(shape, 128, np.uint8)
    others = images.copy()
    others.reshape(-1)[:elements] = 128 + levels
    assert is_same_but_for_rounding(images, others) is is_same
    assert is_same_but_for_rounding(others, images) is is_same


def test_black_and_white_are_far_apart() -> None:
    black, white = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint8)
    white[0, 0] = 255  # which is one level away where differences wrap
    assert not is_same_but_for_rounding(black, white)
    assert not is_same_but_for_rounding(white, black)


def test_an_image_of_another_size_is_refused_before_it_is_unpacked() -> None:
    data = encode_image(np.zeros((4, 6, 1), np.uint8), Format.PNG)
    assert decode_image(data, 1, size=(4, 6)).shape == (4, 6, 1)
    with pytest.raises(ValueError, match="it is an image of 4 x 6, not 6 x 4"):
        decode_image(data, 1, size=(6, 4))
