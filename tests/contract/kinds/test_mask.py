import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentry.contract.errors import BadRequest
from latentry.contract.images import decode_image
from latentry.contract.kinds.formats import FILE_FORMATS, Format
from latentry.contract.kinds.kind import TensorType
from latentry.contract.kinds.registry import input_from_any, output_from_any

PART = {"name": "hole", "kind": "mask", "height": 4, "width": 5}
HOLE = input_from_any(PART)
ROWS = np.arange(40, dtype=np.uint8).reshape(2, 4, 5) * 6


def test_masks_however_they_are_held(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ROWS[0]).save(buffer, "PNG")
    (tmp_path / "hole.png").write_bytes(buffer.getvalue())
    for value in (ROWS[0], ROWS[0].tolist(), tmp_path / "hole.png", Image.fromarray(ROWS[0])):
        rows, is_one = HOLE.rows_from_value(value, most=1)
        assert is_one
        np.testing.assert_array_equal(rows, ROWS[:1])
    rows, is_one = HOLE.rows_from_value(ROWS, most=2)
    assert not is_one
    np.testing.assert_array_equal(rows, ROWS)


def test_a_mask_of_one_bit_is_nothing_or_all() -> None:
    bits = Image.fromarray(ROWS[0] > 60)
    rows, _ = HOLE.rows_from_value(bits, most=1)
    np.testing.assert_array_equal(rows[0], (ROWS[0] > 60) * 255)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ROWS > 60, "hole holds False, a bool; it takes masks of 4 x 5, uint8, 0 to 255"),
        (ROWS[:, :2], r"hole has rows of shape \[2, 5\]; it takes rows of shape \[4, 5\]: masks"),
        (ROWS[0, :, :, None], r"hole has rows of shape \[5, 1\]"),
        (Image.new("L", (4, 5)), "hole is a picture of 5 x 4; it takes masks of 4 x 5"),
        ("hole.png", "hole is a text"),
    ],
)
def test_what_is_no_mask(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        HOLE.check(HOLE.rows_from_value(value, most=2)[0])


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_levels_that_go_through_a_network_come_back(value_range: tuple[float, float]) -> None:
    torch = pytest.importorskip("torch")
    part = {**PART, "height": 16, "width": 16, "range": list(value_range)}
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    taken = input_from_any(part).to_network(levels)
    assert (taken.dtype, tuple(taken.shape)) == (torch.float32, (1, 1, 16, 16))
    assert (taken.min(), taken.max()) == value_range
    given_back = output_from_any(part).from_network(taken)
    assert torch.equal(given_back["hole"], levels)
    assert given_back["hole.sample"] is taken


def test_how_a_mask_travels() -> None:
    item = output_from_any(PART)
    raw = {"hole": TensorType(np.uint8, (4, 5))}
    assert item.tensors(Format.RAW) == raw
    sample = {"hole.sample": TensorType(np.float32, (1, 4, 5))}
    assert item.tensors(Format.FLOAT) == {**raw, **sample}
    for image_format in FILE_FORMATS:
        assert item.tensors(image_format) == {"hole.encoded": TensorType(np.object_, (1,))}
    for lossless in (Format.PNG, Format.WEBP):
        decoded = decode_image(item.encode(ROWS[0], lossless), 1)
        np.testing.assert_array_equal(decoded[:, :, 0], ROWS[0])


def test_a_mask_may_be_of_one_value_and_need_not_matter() -> None:
    assert not output_from_any(PART).find_constant(np.zeros((2, 4, 5), np.uint8)).any()
    assert not HOLE.must_matter


def test_masks_are_as_near_as_pictures_must_be() -> None:
    item = output_from_any(PART)
    moved = ROWS.copy()
    moved[0, 0, 0] += 1
    assert item.is_same_but_for_rounding(ROWS, moved)
    moved[0, 0, 1] += 1
    assert not item.is_same_but_for_rounding(ROWS, moved)
