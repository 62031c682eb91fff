import json

import pytest

from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.perf_input import perf_input


@pytest.mark.parametrize(
    ("inputs", "row"),
    [
        ([{"role": "z", "shape": [4]}], {"seed": [5]}),
        (
            [
                {"role": "z", "shape": [4]},
                {"role": "class_label", "classes": ["a", "b"]},
                {"role": "w", "shape": [1, 2], "w_avg": [0, 0]},
                {"role": "truncation_psi"},
            ],
            {"seed": [5], "class_label": [1], "truncation_psi": [1.0]},
        ),
    ],
)
def test_inputs_are_valid_and_have_the_same_tensors(
    inputs: list[dict[str, object]], row: dict[str, list[float]]
) -> None:
    image = {"height": 2, "width": 2, "channels": 1}
    spec = GeneratorSpec.model_validate({"inputs": inputs, "image": image})
    rows = json.loads(perf_input(spec))["data"]
    assert rows[5] == row
    assert {tuple(item) for item in rows} == {tuple(row)}
