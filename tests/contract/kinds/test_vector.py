from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import TensorType
from latentry.contract.kinds.registry import input_from_any, output_from_any
from latentry.contract.kinds.vector import are_near

FACE = input_from_any(
    {
        "name": "face",
        "kind": "vector",
        "size": 3,
        "entries": ["age", "joy", "beard"],
        "minimum": 0,
        "maximum": 1,
        "default": [0.5, 0, 0.25],
    }
)
PLAIN = input_from_any({"name": "v", "kind": "vector", "size": 2})


@pytest.mark.parametrize(
    ("value", "rows", "is_one"),
    [
        ([0, 0.5, 1], [[0, 0.5, 1]], True),
        ((0, 0.5, 1), [[0, 0.5, 1]], True),
        (np.array([0, 0.5, 1], np.float16), [[0, 0.5, 1]], True),
        (iter([0, 0.5, 1]), [[0, 0.5, 1]], True),
        ([[0, 0.5, 1], [1, 1, 1]], [[0, 0.5, 1], [1, 1, 1]], False),
        (np.zeros((2, 3)), [[0, 0, 0], [0, 0, 0]], False),
        ([np.zeros(3), [1, 1, 1]], [[0, 0, 0], [1, 1, 1]], False),
    ],
)
def test_vectors_of_any_library(value: Any, rows: list[list[float]], is_one: bool) -> None:
    found, alone = FACE.rows_from_value(value, most=2)
    assert (found.tolist(), found.dtype.name, alone) == (rows, "float32", is_one)
    FACE.check(found)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0, 0.5], r"face has rows of shape \[2\]; it takes rows of shape \[3\]: 3 finite numbers"),
        (0.5, r"face has rows of shape \[\]; it takes rows of shape \[3\]"),
        ([0, 0.5, 1.5], r"face in row 0 is 1.5; it takes .* from 0 to 1 \(age, joy, beard\)"),
        ([0, 0.5, float("nan")], "face in row 0 is nan"),
        ([0, 0.5, 1e300], "face in row 0 is inf"),
        ({"age": 1}, "face holds {'age': 1}, a dict"),
        ("0,0,1", "face holds '0,0,1', a str"),
        ([[0, 0, 0], [1, 1]], r"face holds rows of different shapes, \[2\] and \[3\]"),
        (np.zeros((1, 1, 3)), r"face has rows of shape \[1, 3\]; it takes rows of shape \[3\]"),
    ],
)
def test_what_is_no_vector(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        FACE.check(FACE.rows_from_value(value, most=2)[0])


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("0.1,0,1", [0.1, 0, 1]),
        ("age=1", [1, 0, 0.25]),
        ("joy = 0.5, age = 0", [0, 0.5, 0.25]),
    ],
)
def test_texts(text: str, row: list[float]) -> None:
    (found,), is_one = FACE.rows_from_value(FACE.value_from_text(text), most=1)
    assert is_one
    np.testing.assert_array_equal(found, np.array(row, np.float32))


def test_a_text_of_one_number_is_a_vector_of_one() -> None:
    item = input_from_any({"name": "v", "kind": "vector", "size": 1, "entries": ["a"]})
    for text in ("0.5", "a=0.5"):
        rows, is_one = item.rows_from_value(item.value_from_text(text), most=1)
        assert (rows.tolist(), is_one) == ([[0.5]], True)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "age=", "=1", "nose=1", "age=1,2", "age"])
def test_texts_that_mean_nothing(text: str) -> None:
    with pytest.raises(BadRequest, match=r"face holds .*; it takes 3 finite numbers .*age, joy, b"):
        FACE.value_from_text(text)


def test_what_a_text_names_is_not_written_into_the_default() -> None:
    FACE.value_from_text("age=1")
    default = FACE.default_row()
    assert default is not None
    assert default.tolist() == [0.5, 0, 0.25]
    assert PLAIN.default_row() is None


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ({}, "2 finite numbers a sample"),
        ({"minimum": 0, "maximum": 1}, "2 finite numbers a sample from 0 to 1"),
        ({"maximum": 1}, "2 finite numbers a sample from -1e+30 to 1"),
    ],
)
def test_what_is_allowed(ends: dict[str, float], words: str) -> None:
    item = input_from_any({"name": "v", "kind": "vector", "size": 2, **ends})
    assert item.allowed == words
    many = {"name": "v", "kind": "vector", "size": 30, "entries": [f"e{i}" for i in range(30)]}
    assert input_from_any(many).allowed.endswith("e19, ...)")


def test_examples_are_near_0_or_in_the_range() -> None:
    assert np.abs(PLAIN.examples(50)).max() <= 1
    far = input_from_any({"name": "v", "kind": "vector", "size": 2, "minimum": 5, "maximum": 9})
    assert 5 <= far.examples(50).min() < 6 < 8 < far.examples(50).max() <= 9


def test_a_short_vector_is_told_in_full_and_a_long_one_by_its_hash() -> None:
    assert FACE.text(np.array([0.1, 0, 1], np.float32)) == "0.1,0.0,1.0"
    long = input_from_any({"name": "v", "kind": "vector", "size": 21})
    assert long.text(long.examples(1)[0]).startswith("sha256:")
    assert FACE.stem(FACE.examples(1)[0]) == ""


def test_a_vector_that_comes_out_is_always_raw() -> None:
    item = output_from_any({"name": "f", "kind": "vector", "size": 5})
    for image_format in Format:
        assert item.tensors(image_format) == {"f": TensorType(np.float32, (5,))}
        assert item.row_bytes(image_format) == 20
    assert item.network_shape == (5,)


@given(arrays(np.float32, (3, 4), elements=st.floats(-1000, 1000, width=32)), st.floats(0, 1))
def test_floats_are_near_within_a_ten_thousandth_of_the_largest(
    rows: np.ndarray[Any, Any], share: float
) -> None:
    scale = max(1.0, float(np.abs(rows).max()))
    moved = rows.astype(np.float64) + share * 0.99e-4 * scale
    assert are_near(moved, rows)
    rows_away = rows.astype(np.float64)
    rows_away[1, 2] += (1.01 + share) * 1e-4 * scale
    assert not are_near(rows_away, rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_near_to_nothing(value: float) -> None:
    rows = np.ones((2, 3), np.float32)
    broken = rows.copy()
    broken[1, 1] = value
    assert not are_near(broken, rows)
    assert not are_near(rows, broken)
