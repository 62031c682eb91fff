import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.contract.errors import BadRequest, SpecError
from latentry.contract.spec import GeneratorSpec, Role, check_name, spec_from_json

Z = {"role": "z", "shape": [4]}
W = {"role": "w", "shape": [2, 3], "w_avg": [0.0, 0.1, 0.2]}
PSI = {"role": "truncation_psi"}
LABEL = {"role": "class_label", "classes": ["cat", "dog"]}
IMAGE = {"height": 8, "width": 6, "channels": 3}


def make(*inputs: dict[str, Any]) -> GeneratorSpec:
    return GeneratorSpec.model_validate({"inputs": inputs, "image": IMAGE})


INPUTS = st.tuples(
    st.integers(1, 512),
    st.lists(st.text(min_size=1, max_size=5), max_size=5),
    st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)),
)


@given(INPUTS)
def test_a_spec_survives_json(inputs: tuple[int, list[str], tuple[int, int] | None]) -> None:
    z_dim, classes, w = inputs
    items: list[dict[str, Any]] = [{"role": "z", "shape": [z_dim]}]
    if classes:
        items.append({"role": "class_label", "classes": classes})
    if w:
        items += [{"role": "w", "shape": w, "w_avg": [0.5] * w[1]}, PSI]
    spec = make(*items)
    assert spec_from_json(spec.model_dump_json(), "spec") == spec
    assert spec.z_dim == z_dim
    assert list(spec.classes) == classes
    assert list(spec.stages) == (["mapping", "synthesis"] if w else ["generator"])


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ("{", "spec.json is no generator spec: .*EOF"),
        ({"inputs": [Z], "image": IMAGE, "sigma": 1}, "sigma: there is no such key"),
        ({"inputs": [LABEL], "image": IMAGE}, "every generator needs an input with role z"),
        ({"inputs": [Z, Z], "image": IMAGE}, "declared more than once: z"),
        ({"inputs": [Z, W], "image": IMAGE}, "w and truncation_psi go together"),
        ({"inputs": [Z, PSI], "image": IMAGE}, "w and truncation_psi go together"),
        (
            {"inputs": [Z, {"role": "text"}], "image": IMAGE},
            "role 'text' is unknown; use one of z, w",
        ),
        (
            {"inputs": [Z, PSI, {**W, "w_avg": [0.0]}], "image": IMAGE},
            "w_avg has 1 numbers, w_dim is 3",
        ),
        ({"inputs": [Z], "image": {**IMAGE, "channels": 4}}, "channels: Input should be 1 or 3"),
        ({"inputs": [Z], "image": {**IMAGE, "height": 60000, "width": 60000}}, "is over 16777216"),
        ({"inputs": [Z], "image": {**IMAGE, "height": 65537}}, "height: Input should be less than"),
    ],
)
def test_what_is_no_spec_is_refused(document: object, match: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(SpecError, match=match):
        spec_from_json(text, "spec.json")


@pytest.mark.parametrize(
    ("role", "values", "match"),
    [
        ("z", np.zeros((2, 5), np.float32), r"z has rows of shape \[5\]; it takes rows of shape"),
        ("z", np.full((2, 4), np.nan, np.float32), "z in row 0 is nan; it takes 4 finite"),
        ("z", np.zeros((2, 4)), "z has dtype float64; it takes 4 finite float32"),
        ("w", np.full((1, 2, 3), np.inf, np.float32), "w in row 0 is inf"),
        ("class_label", np.array([[0], [2]]), "row 1 is 2; it takes an integer from 0 to 1: 0=cat"),
        ("class_label", np.array([[-1]]), "class_label in row 0 is -1"),
        ("truncation_psi", np.array([[np.nan]], np.float32), "is nan; it takes a number from -2"),
        ("truncation_psi", np.array([[2.5]], np.float32), "in row 0 is 2.5"),
    ],
)
def test_a_value_outside_its_role_is_refused(role: str, values: Any, match: str) -> None:
    item = make(Z, W, PSI, LABEL).find(role)
    assert item is not None
    with pytest.raises(BadRequest, match=match):
        item.check(values)


def test_the_ends_of_a_range_are_allowed() -> None:
    for role, values in (
        ("truncation_psi", np.array([[-2.0], [2.0]], np.float32)),
        ("class_label", np.array([[0], [1]])),
    ):
        item = make(Z, W, PSI, LABEL).find(role)
        assert item is not None
        item.check(values)


@pytest.mark.parametrize(("count", "more"), [(20, False), (21, True)])
def test_no_message_lists_classes_without_end(count: int, more: bool) -> None:
    item = make(Z, {**LABEL, "classes": [f"c{i}" for i in range(count)]}).find(Role.CLASS_LABEL)
    assert item is not None
    assert "19=c19" in item.allowed
    assert "20=c20" not in item.allowed
    assert item.allowed.endswith(", ...") == more


def test_classes_that_are_called_by_their_numbers_are_not_listed() -> None:
    item = make(Z, {**LABEL, "classes": ["0", "1", "2"]}).find(Role.CLASS_LABEL)
    assert item is not None
    assert item.allowed == "an integer from 0 to 2"


def test_each_role_of_an_input_has_one_class() -> None:
    spec = make(Z, W, PSI, LABEL)
    assert {item.role for item in spec.inputs} == set(Role) - {Role.IMAGE}


@pytest.mark.parametrize("name", ["digits", "a", "0", "a-b_c", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", "a.b", "../a", "a/b", "x" * 65, "a\n", "ü"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="is not allowed; use 1 to 64 of a-z"):
        check_name(name)
