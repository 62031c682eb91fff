import base64
import json
from typing import Any

import numpy as np
import pytest
from specs import Part, classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.kinds.kind import TensorType
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import rows_from_request
from latentry.serving.entries.examples import example_request, example_tensors, perf_input

STYLEGAN = make_spec(
    [z(4), classes("a", "b"), w(1, 2), psi()], [image(2, 2, 1)], stages_of_stylegan([0.0, 0.0])
)
PHOTO = {"name": "photo", "kind": "picture", "height": 8, "width": 6, "channels": 3}
INPUTS: list[Part] = [
    z(4, 8, 8, distribution="truncated_normal"),
    {"name": "noise", "kind": "latent", "shape": [16], "distribution": "uniform"},
    {"name": "style", "kind": "latent", "shape": [3], "distribution": "none"},
    classes("a", "b", "c"),
    {"name": "guidance_scale", "kind": "number", "minimum": 0.0, "maximum": 20.0, "default": 7.5},
    {"name": "num_steps", "kind": "integer", "minimum": -3, "maximum": 9},
    {"name": "attributes", "kind": "vector", "size": 40, "minimum": 0.0, "maximum": 1.0},
    PHOTO,
    {"name": "alpha", "kind": "mask", "height": 8, "width": 6},
    {"name": "parts", "kind": "label_map", "height": 24, "width": 18, "labels": 5},
]
EVERYTHING = make_spec(INPUTS, [image(8, 8)])
PICTURES = make_spec([PHOTO], [image(8, 8)])
SPECS = {
    "plain": make_spec([z(4)], [image(2, 2, 1)]),
    "mapping": STYLEGAN,
    "everything": EVERYTHING,
    "pictures": PICTURES,
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [1, 2, 32])
def test_every_generator_takes_its_examples(name: str, count: int) -> None:
    spec = SPECS[name]
    request = example_request(spec, count)
    rows = rows_from_request(spec, request, most=count)
    assert rows.count == count
    found = {name: TensorType(a.dtype.type, a.shape[1:]) for name, a in request.items()}
    assert found == example_tensors(spec)


def test_examples_differ() -> None:
    for name, array in example_request(EVERYTHING, 32).items():
        few = {"class_label": 3, "guidance_scale": 4, "num_steps": 13}
        assert len({row.tobytes() for row in array}) == few.get(name, 32), name


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        (SPECS["plain"], {"seed": [5]}),
        (STYLEGAN, {"seed": [5], "class_label": [0], "truncation_psi": [1.0]}),
    ],
)
def test_inputs_are_valid_and_have_the_same_tensors(
    spec: GeneratorSpec, row: dict[str, list[float]]
) -> None:
    rows = json.loads(perf_input(spec))["data"]
    assert len(rows) == 64
    assert rows[5] == row
    assert {tuple(item) for item in rows} == {tuple(row)}


@pytest.mark.parametrize("name", SPECS)
def test_what_stands_in_the_file_is_taken(name: str) -> None:
    spec = SPECS[name]
    rows = json.loads(perf_input(spec))["data"]
    types = example_tensors(spec)

    def array(name: str, content: Any) -> np.ndarray[Any, Any]:
        dtype, shape = types[name].dtype, types[name].row_shape
        if isinstance(content, dict):
            return np.frombuffer(base64.b64decode(content["b64"]), dtype).reshape(1, *shape)
        return np.array(content, dtype).reshape(1, *shape)

    requests = [{name: array(name, content) for name, content in row.items()} for row in rows]
    for request in requests:
        rows_from_request(spec, request, most=1)
    together = {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}
    assert rows_from_request(spec, together, most=64).count == 64
    if "guidance_scale" in together:
        assert set(together["guidance_scale"].flat) == {7.5}


def test_the_file_of_large_pictures_stays_small() -> None:
    size = {"height": 1024, "width": 1024, "channels": 3}
    data = perf_input(make_spec([{**PHOTO, **size}], [image(8, 8)]))
    assert len(json.loads(data)["data"]) == 2
    assert len(data) < 12 * 2**20
