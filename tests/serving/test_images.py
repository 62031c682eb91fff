import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from latentry.serving.errors import BadRequest
from latentry.serving.images import (
    Format,
    Uint8,
    decode_image,
    encode_image,
    format_from_text,
    grid_from_images,
    png_from_uint8,
    png_with_text,
    uint8_from_sample,
)

IMAGES = st.sampled_from([(5, 7, 3), (4, 4, 1), (1, 1, 3)]).flatmap(lambda s: arrays(np.uint8, s))


@given(IMAGES, st.sampled_from([Format.PNG, Format.WEBP]))
def test_lossless_formats_give_the_image_back(image: Uint8, image_format: Format) -> None:
    decoded = decode_image(encode_image(image, image_format), image.shape[2])
    np.testing.assert_array_equal(decoded, image)


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
