from typing import Any

import numpy as np
import pytest

from latentry.contract.errors import BadRequest
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import Format, input_row_bytes, rows_from_request

Z = {"role": "z", "shape": [4]}
LABEL = {"role": "class_label", "classes": ["cat", "dog"]}
MAPPED: list[dict[str, Any]] = [
    {"role": "w", "shape": [2, 3], "w_avg": [0.0, 0.1, 0.2]},
    {"role": "truncation_psi", "default": 0.7},
]


def make(*inputs: dict[str, Any]) -> GeneratorSpec:
    image = {"height": 8, "width": 6, "channels": 3}
    return GeneratorSpec.model_validate({"inputs": [Z, *inputs], "image": image})


PLAIN, CLASSES, FULL = make(), make(LABEL), make(LABEL, *MAPPED)


def seeds(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)[:, None]


def test_defaults_are_filled_in() -> None:
    rows = rows_from_request(FULL, {"seed": seeds(1, 2), "class_label": seeds(0, 1)}, most=4)
    assert (rows.count, rows.latent, rows.image_format) == (2, "seed", Format.RAW)
    assert rows.controls["truncation_psi"].tolist() == [[np.float32(0.7)]] * 2


@pytest.mark.parametrize(
    ("spec", "latent", "size"),
    [
        (PLAIN, "seed", 8),
        (PLAIN, "z", 4 * 4),
        (FULL, "seed", 8 + 8 + 8),
        (FULL, "w", 4 * 6 + 8 + 8),
    ],
)
def test_the_size_of_a_samples_tensors(spec: GeneratorSpec, latent: str, size: int) -> None:
    assert input_row_bytes(spec, latent) == size  # controls count as int64


def test_w_goes_around_the_class() -> None:
    w = np.zeros((1, 2, 3), np.float32)
    assert list(rows_from_request(FULL, {"w": w}, most=4).controls) == ["truncation_psi"]
    with pytest.raises(BadRequest, match="class_label acts in the mapping network"):
        rows_from_request(FULL, {"w": w, "class_label": seeds(0)}, most=4)


@pytest.mark.parametrize(
    ("spec", "request_", "match"),
    [
        (PLAIN, {}, "carries no tensors; send at least seed"),
        (PLAIN, {"format": np.array([[b"png"]])}, "exactly one of seed, z must be given; none was"),
        (
            PLAIN,
            {"seed": seeds(1), "z": np.zeros((1, 4), np.float32)},
            "exactly one of seed, z must be given; seed and z was",
        ),
        (PLAIN, {"seed": seeds()}, "has 0 rows; this model takes 1 to 4"),
        (PLAIN, {"seed": seeds(*range(5))}, "has 5 rows; this model takes 1 to 4"),
        (PLAIN, {"seed": seeds(0, -1)}, "seed in row 1 is -1; a seed is an integer from 0"),
        (PLAIN, {"seed": seeds(2**32)}, "seed in row 0 is 4294967296"),
        (PLAIN, {"seed": np.zeros((1, 2), np.int64)}, r"seed has shape \[1, 2\]"),
        (PLAIN, {"seed": np.zeros((1, 1))}, "seed has dtype float64; seeds travel as int64"),
        (PLAIN, {"w": np.zeros((1, 2, 3), np.float32)}, "takes no w; it takes seed, z, format"),
        (PLAIN, {"seed": seeds(1), "class_label": seeds(0)}, "takes no class_label; it takes seed"),
        (
            PLAIN,
            {"seed": seeds(1), "truncation_psi": np.ones((1, 1), np.float32)},
            "takes no truncation_psi",
        ),
        (CLASSES, {"seed": seeds(1)}, "class_label is required by this model; .* 0=cat, 1=dog"),
        (CLASSES, {"seed": seeds(1), "class_label": seeds(2)}, "row 0 is 2"),
        (CLASSES, {"seed": seeds(1, 2), "class_label": seeds(0)}, "differ in their number of rows"),
        (
            PLAIN,
            {"seed": seeds(1, 2), "format": np.array([[b"png"], [b"raw"]])},
            "format differs inside one request",
        ),
        (PLAIN, {"seed": seeds(1), "format": np.array([[b"gif"]])}, "format 'gif' is unknown"),
        (
            PLAIN,
            {"seed": seeds(1), "format": np.array([[b"x" * 300]], object)},
            "format holds 300 bytes; it takes at most 256",
        ),
        (
            PLAIN,
            {"seed": seeds(1), "format": np.array([[b"\xff"]], object)},
            r"format holds b'\\xff', which is no UTF-8 text",
        ),
    ],
)
def test_refusals(spec: GeneratorSpec, request_: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        rows_from_request(spec, request_, most=4)
