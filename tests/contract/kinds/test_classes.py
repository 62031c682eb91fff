from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import classes

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.registry import input_from_any

PETS = input_from_any(classes("cat", "dog", "emu"))
DIGITS = input_from_any(classes(*map(str, range(10))))
FISH = input_from_any(classes("tench, Tinca tinca", "goldfish", "shark, white", name="fish"))


@pytest.mark.parametrize(
    ("value", "rows", "is_one"),
    [
        (2, [[2]], True),
        ("emu", [[2]], True),
        (np.int8(2), [[2]], True),
        (np.array("emu"), [[2]], True),
        ([2, 0], [[2], [0]], False),
        (["emu", "cat"], [[2], [0]], False),
        (("emu", 0), [[2], [0]], False),
        (np.array([[2], [0]]), [[2], [0]], False),
        (np.array(["emu", "cat"]), [[2], [0]], False),
        (np.array(["emu", 0], np.object_), [[2], [0]], False),
        ((name for name in ("emu", "cat")), [[2], [0]], False),
        (range(2), [[0], [1]], False),
    ],
)
def test_classes_are_numbers_or_names(value: Any, rows: list[list[int]], is_one: bool) -> None:
    found, alone = PETS.rows_from_value(value, most=2)
    assert (found.tolist(), found.dtype.name, alone) == (rows, "int64", is_one)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cow", "class_label has no class 'cow'; it takes an integer from 0 to 2: 0=cat, 1=dog"),
        (["cat", "Dog"], "class_label has no class 'Dog'"),
        (b"cat", "class_label holds b'cat', a bytes"),
        ([b"cat"], "class_label holds b'cat', a bytes"),
        (1.0, "class_label holds 1.0, a float"),
        (True, "class_label holds True, a bool"),
        ([[0, 1]], r"class_label has shape \[1, 2\]; give one value for all samples, or one for"),
        ([["cat"]], "class_label holds 'cat', a str"),
        (memoryview(b"\0\1"), "class_label holds <memory at .*>, a memoryview"),
    ],
)
def test_what_is_no_class(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        PETS.rows_from_value(value, most=2)


@pytest.mark.parametrize(
    ("item", "text", "value"),
    [
        (PETS, "2", [2]),
        (PETS, "0-2,1", [0, 1, 2, 1]),
        (PETS, "emu", [2]),
        (PETS, "emu, cat,emu", [2, 0, 2]),
        (DIGITS, "7", [7]),
        (DIGITS, "7-9", [7, 8, 9]),
        (FISH, "tench, Tinca tinca", [0]),  # the whole text is a name
        (FISH, "goldfish,goldfish", [1, 1]),
    ],
)
def test_texts(item: ClassInput, text: str, value: list[int]) -> None:
    assert item.value_from_text(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cow",
            "class_label holds 'cow'; give integers and ranges, such as 0-63,100, or names; it",
        ),
        ("cat,cow", "class_label has no class 'cow'; it takes an integer from 0 to 2: 0=cat"),
        ("", "class_label holds ''; give integers and ranges"),
        ("2-0", r"holds 2-0, which runs backwards; 0-2\?, or names; it takes an integer"),
    ],
)
def test_texts_that_mean_nothing(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        PETS.value_from_text(text)


def test_of_two_classes_with_one_name_the_first_is_meant() -> None:
    item = input_from_any(classes("crane", "cat", "crane"))
    assert item.value_from_text("crane") == [0]
    assert item.rows_from_value("crane", most=1)[0].tolist() == [[0]]


@given(st.lists(st.text(max_size=4), min_size=1, max_size=30), st.data())
def test_a_name_means_the_class_that_is_called_so(names: list[str], data: st.DataObject) -> None:
    item = input_from_any(classes(*names))
    name = data.draw(st.sampled_from(names))
    (row,), is_one = item.rows_from_value(name, most=1)
    assert is_one
    assert names[int(row[0])] == name
    assert item.value_from_text(name) == [row[0]]


def test_what_is_allowed_names_classes_that_are_more_than_numbers() -> None:
    assert PETS.allowed == "an integer from 0 to 2: 0=cat, 1=dog, 2=emu"
    assert DIGITS.allowed == "an integer from 0 to 9"


def test_examples_are_spread_over_the_classes() -> None:
    assert DIGITS.examples(4).tolist() == [[0], [3], [6], [9]]
    assert PETS.examples(1).tolist() == [[0]]
    assert input_from_any(classes("only")).examples(3).tolist() == [[0]] * 3


def test_one_class_need_not_matter() -> None:
    assert PETS.must_matter
    assert not input_from_any(classes("only")).must_matter
    assert PETS.default_row() is None


def test_a_class_in_a_files_name() -> None:
    row = np.array([7])
    assert (DIGITS.text(row), DIGITS.stem(row)) == ("7", "class7")
    assert FISH.stem(row) == "fish7"
