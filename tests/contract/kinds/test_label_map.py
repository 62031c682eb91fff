import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from latentry.contract.errors import BadRequest
from latentry.contract.images import decode_image
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import TensorType
from latentry.contract.kinds.registry import input_from_any, output_from_any

PART = {"name": "places", "kind": "label_map", "height": 2, "width": 3, "labels": 5}
PLACES = input_from_any(PART)
ROWS = np.array([[[0, 1, 2], [3, 4, 0]], [[4, 4, 4], [0, 0, 1]]], np.uint8)


def with_a_palette(labels: np.ndarray[Any, Any]) -> Image.Image:
    """Return a picture of these labels in colours, as segmentation data sets hold them."""
    picture = Image.fromarray(labels, "L").convert("P")
    picture.putdata(labels.ravel().tolist())
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
    return picture


def test_label_maps_however_they_are_held() -> None:
    buffer = io.BytesIO()
    with_a_palette(ROWS[0]).save(buffer, "PNG")
    held = (ROWS[0], ROWS[0].tolist(), Image.fromarray(ROWS[0]), with_a_palette(ROWS[0]))
    for value in (*held, buffer.getvalue()):
        rows, is_one = PLACES.rows_from_value(value, most=1)
        assert is_one
        np.testing.assert_array_equal(rows, ROWS[:1])
    rows, _ = PLACES.rows_from_value([with_a_palette(row) for row in ROWS], most=2)
    np.testing.assert_array_equal(rows, ROWS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            ROWS + np.uint8(1),
            "places in row 0 is 5; it takes label maps of 2 x 3, uint8, labels 0 to 4",
        ),
        (Image.new("RGB", (3, 2)), "places has mode RGB; label maps have grey levels or a palette"),
        (Image.new("L", (2, 3)), "places is a picture of 3 x 2; it takes label maps of 2 x 3"),
        (ROWS[:, :1], r"places has rows of shape \[1, 3\]; it takes rows of shape \[2, 3\]"),
    ],
)
def test_what_is_no_label_map(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        PLACES.check(PLACES.rows_from_value(value, most=2)[0])


@pytest.mark.parametrize("labels", [2, 5, 256])
def test_examples_hold_many_labels_and_no_other(labels: int) -> None:
    part = {**PART, "height": 64, "width": 64, "labels": labels}
    rows = input_from_any(part).examples(3)
    input_from_any(part).check(rows)
    assert len(np.unique(rows)) > min(labels, 100) / 2


def test_a_network_gets_integers() -> None:
    torch = pytest.importorskip("torch")
    taken = PLACES.to_network(torch.from_numpy(ROWS))
    assert taken.dtype == torch.int64
    assert taken.tolist() == ROWS.tolist()


@given(arrays(np.uint8, (2, 2, 3), elements=st.integers(0, 4)), st.floats(-5, 5, width=32))
def test_the_largest_score_wins(labels: np.ndarray[Any, Any], base: float) -> None:
    torch = pytest.importorskip("torch")
    scores = torch.full((2, 5, 2, 3), base)
    scores.scatter_(1, torch.from_numpy(labels).long()[:, None], base + 1)
    found = output_from_any(PART).from_network(scores)
    np.testing.assert_array_equal(found["places"].numpy(), labels)
    assert found["places.sample"] is scores


def test_how_a_label_map_travels() -> None:
    item = output_from_any(PART)
    assert item.network_shape == (5, 2, 3)
    raw = {"places": TensorType(np.uint8, (2, 3))}
    assert item.tensors(Format.RAW) == raw
    scores = {"places.sample": TensorType(np.float32, (5, 2, 3))}
    assert item.tensors(Format.FLOAT) == {**raw, **scores}
    for image_format in (Format.PNG, Format.JPEG, Format.WEBP):
        assert item.tensors(image_format) == {"places.encoded": TensorType(np.object_, (1,))}
        assert item.file_format(image_format) is Format.PNG
        data = item.encode(ROWS[0], image_format)
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.mode) == ("PNG", "L")
        np.testing.assert_array_equal(decode_image(data, 1)[:, :, 0], ROWS[0])


@pytest.mark.parametrize(("size", "allowed"), [(10, 1), (32, 1), (100, 10)])
def test_one_label_in_a_thousand_may_differ(size: int, allowed: int) -> None:
    item = output_from_any({**PART, "height": size, "width": size, "labels": 256})
    labels = np.zeros((1, size, size), np.uint8)
    other = labels.copy()
    other.reshape(-1)[:allowed] = 200
    assert item.is_same_but_for_rounding(labels, other)
    other.reshape(-1)[: allowed + 1] = 200
    assert not item.is_same_but_for_rounding(labels, other)


def test_a_label_map_may_be_of_one_label_and_need_not_matter() -> None:
    assert not output_from_any(PART).find_constant(ROWS).any()
    assert not PLACES.must_matter
