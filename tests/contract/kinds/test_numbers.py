from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import psi

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.registry import input_from_any

PSI = input_from_any(psi())
SCALE = input_from_any({"name": "scale", "kind": "number", "minimum": 0.1, "maximum": 20.0})
STEPS = input_from_any(
    {"name": "steps", "kind": "integer", "minimum": -4, "maximum": 1000, "default": 20}
)
FULL = input_from_any({"name": "any", "kind": "integer", "minimum": -(2**63), "maximum": 2**63 - 1})
CUTOFF = input_from_any(
    {"name": "truncation_cutoff", "kind": "integer", "minimum": 0, "maximum": 9}
)


@pytest.mark.parametrize(
    ("value", "rows", "is_one"),
    [
        (0.5, [[0.5]], True),
        (1, [[1.0]], True),
        (Fraction(1, 2), [[0.5]], True),
        (np.float16(0.5), [[0.5]], True),
        (np.array(0.5), [[0.5]], True),
        ([0.5, 1], [[0.5], [1.0]], False),
        (np.array([[0.5], [1.0]]), [[0.5], [1.0]], False),
        (iter([0.5, 1]), [[0.5], [1.0]], False),
    ],
)
def test_numbers_of_any_library(value: Any, rows: list[list[float]], is_one: bool) -> None:
    found, alone = PSI.rows_from_value(value, most=2)
    assert (found.tolist(), found.dtype.name, alone) == (rows, "float32", is_one)


def test_numbers_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rows, is_one = PSI.rows_from_value(torch.tensor([0.5, 1.0]), most=2)
    assert (rows.tolist(), is_one) == ([[0.5], [1.0]], False)
    rows, is_one = STEPS.rows_from_value(torch.tensor(7), most=2)
    assert (rows.tolist(), is_one) == ([[7]], True)
    assert PSI.to_network(torch.zeros(3, 1)).shape == (3,)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.5", "truncation_psi holds '0.5', a str; it takes a number from -2 to 2, 1 if left out"),
        (True, "truncation_psi holds True, a bool"),
        (1j, "truncation_psi holds 1j, a complex"),
        ([[0.5, 1]], r"truncation_psi has shape \[1, 2\]; give one value for all samples, or one"),
    ],
)
def test_what_is_no_number(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        PSI.rows_from_value(value, most=2)


@pytest.mark.parametrize("value", [1.0, np.float32(1), "1", True, [1.5], 2**63])
def test_what_is_no_integer(value: Any) -> None:
    with pytest.raises(BadRequest, match="^steps .*it takes an integer from -4 to 1000, 20 if"):
        STEPS.rows_from_value(value, most=2)


@pytest.mark.parametrize("value", [-2.0000002, 2.0000002, np.nan, np.inf, -np.inf])
def test_numbers_outside_the_range(value: float) -> None:
    with pytest.raises(
        BadRequest, match="truncation_psi in row 1 is .*; it takes a number from -2"
    ):
        PSI.check(np.array([[0], [value]], np.float32))


@given(st.floats(-1e30, 1e30), st.floats(1e-3, 1e6))
def test_the_ends_are_allowed_though_float32_lies_beyond_them(low: float, span: float) -> None:
    item = input_from_any({"name": "x", "kind": "number", "minimum": low, "maximum": low + span})
    item.check(np.array([[low], [low + span]], np.float32))


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_exact(value: int) -> None:
    rows, _ = FULL.rows_from_value(value, most=1)
    FULL.check(rows)
    assert rows.tolist() == [[value]]
    assert FULL.value_from_text(str(value)) == [value]


@pytest.mark.parametrize(
    ("text", "value"), [("0.7", 0.7), ("0.5, 1,-2", [0.5, 1, -2]), ("1e-1", 0.1)]
)
def test_texts_of_numbers(text: str, value: Any) -> None:
    assert PSI.value_from_text(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", [7]), ("-3", [-3]), ("-3--1", [-3, -2, -1]), ("0-2,-4", [0, 1, 2, -4])],
)
def test_texts_of_integers(text: str, value: Any) -> None:
    assert STEPS.value_from_text(text) == value


@pytest.mark.parametrize("text", ["", "half", "0,5;", "1,,2", "0x1"])
def test_texts_that_mean_no_number(text: str) -> None:
    with pytest.raises(BadRequest, match="truncation_psi holds .*; it takes a number from -2 to 2"):
        PSI.value_from_text(text)


@pytest.mark.parametrize("text", ["", "1.5", "ten", "٣", "--3", "9" * 5000, str(2**63)])
def test_texts_that_mean_no_integer(text: str) -> None:
    with pytest.raises(BadRequest, match="^steps holds .*; it takes an integer from -4 to 1000"):
        STEPS.value_from_text(text)


def test_defaults() -> None:
    default, steps = PSI.default_row(), STEPS.default_row()
    assert default is not None
    assert steps is not None
    assert (default.tolist(), default.dtype.name) == ([1.0], "float32")
    assert (steps.tolist(), steps.dtype.name) == ([20], "int64")
    assert SCALE.default_row() is None
    assert CUTOFF.default_row() is None


def test_what_is_allowed() -> None:
    assert PSI.allowed == "a number from -2 to 2, 1 if left out"
    assert SCALE.allowed == "a number from 0.1 to 20"
    assert STEPS.allowed == "an integer from -4 to 1000, 20 if left out"
    assert CUTOFF.allowed == "an integer from 0 to 9"


def test_numbers_in_a_files_name() -> None:
    assert PSI.stem(np.array([0.7], np.float32)) == "psi0.7"
    assert PSI.stem(np.array([1.0], np.float32)) == ""
    assert PSI.text(np.array([0.7], np.float32)) == "0.7"
    assert SCALE.stem(np.array([7.5], np.float32)) == "scale7.5"
    assert CUTOFF.stem(np.array([3])) == "cutoff3"
    assert STEPS.stem(np.array([20])) == ""
    assert STEPS.stem(np.array([-4])) == "steps-4"


def test_examples_hold_the_ends() -> None:
    assert sorted(PSI.examples(4)[:, 0].tolist()) == [-2.0, -0.5, 1.0, 2.0]
    assert STEPS.examples(3)[:, 0].tolist() == [-4, 498, 1000]
    assert FULL.examples(2)[:, 0].tolist() == [-(2**63), 2**63 - 1]


def test_numbers_need_not_matter() -> None:
    assert not PSI.must_matter
    assert not STEPS.must_matter
