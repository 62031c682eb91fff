from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specs import w, z

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.registry import input_from_any
from latentry.contract.values.npy import npy_bytes

ROWS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
NOISE = input_from_any(z(3, 4, name="noise"))


class Exchanged:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> object:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device


HELD = [
    *(ROWS, ROWS.tolist(), list(ROWS), iter(ROWS), Exchanged(ROWS), np.asfortranarray(ROWS)),
    *(ROWS.astype(np.float16), ROWS.astype(">f8"), ROWS.astype("i2"), ROWS[:, ::-1][:, ::-1]),
]


@pytest.mark.parametrize("value", HELD)
def test_latents_of_any_library(value: Any) -> None:
    rows, is_one = NOISE.rows_from_value(value, most=2)
    np.testing.assert_array_equal(rows, ROWS)
    assert (rows.dtype.name, is_one, rows.flags.c_contiguous) == ("float32", False, True)


def test_latents_of_torch() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(ROWS)
    for value in (tensor, tensor.double(), tensor.bfloat16(), tensor.clone().requires_grad_()):
        np.testing.assert_array_equal(NOISE.rows_from_value(value, most=2)[0], ROWS)
    rows, is_one = NOISE.rows_from_value(tensor[1], most=2)
    np.testing.assert_array_equal(rows, ROWS[1:])
    assert is_one
    assert NOISE.to_network(tensor) is tensor
    assert input_from_any(z(1)).to_network(tensor[:, 0, :1]).shape == (2, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (ROWS[0, 0], r"noise has shape \[4\]; it takes \[3, 4\], or \[N, 3, 4\] for N samples"),
        (np.zeros((1, 1, 3, 4)), r"noise has shape \[1, 1, 3, 4\]; it takes"),
        (1.0, r"noise has shape \[\]"),
        ("z.npy", "noise holds 'z.npy', a str; it takes 3 x 4 finite float32 numbers a sample"),
        (Path("z.npy"), "noise holds PosixPath"),
        (ROWS.astype(np.complex64), "noise holds .*, a complex"),
        (ROWS > 3, "noise holds False, a bool"),
    ],
)
def test_what_is_no_latent(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        NOISE.rows_from_value(value, most=2)


def test_numbers_too_large_for_float32_are_refused_by_the_check() -> None:
    rows, _ = NOISE.rows_from_value(np.full((1, 3, 4), 1e300), most=1)
    with pytest.raises(BadRequest, match="noise in row 0 is inf; it takes 3 x 4 finite"):
        NOISE.check(rows)


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        ("normal", "3 finite float32 numbers a sample (normal)"),
        ("truncated_normal", "3 finite float32 numbers a sample (truncated normal)"),
        ("uniform", "3 finite float32 numbers a sample (uniform)"),
        ("none", "3 finite float32 numbers a sample"),
    ],
)
def test_what_is_allowed(distribution: str, words: str) -> None:
    item = input_from_any(z(3, distribution=distribution))
    assert item.allowed == words
    assert item.distribution_to_draw == ("" if distribution == "none" else distribution)


def test_a_latent_has_no_default_and_must_matter() -> None:
    for item in (NOISE, input_from_any(w(2, 2))):
        assert item.default_row() is None
        assert item.must_matter


def test_examples_of_a_uniform_latent_lie_in_its_range() -> None:
    rows = input_from_any(z(50, distribution="uniform", minimum=0.25, maximum=0.5)).examples(4)
    assert (rows.min(), rows.max()) == (0.25, 0.5)


def test_a_text_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy_bytes(ROWS))
    np.testing.assert_array_equal(NOISE.value_from_text(str(tmp_path / "a.npy")), ROWS)
    with pytest.raises(BadRequest, match=r"noise: .*b\.npy cannot be read: No such file"):
        NOISE.value_from_text(str(tmp_path / "b.npy"))


def test_a_latents_text_is_its_hash_and_no_part_of_a_name() -> None:
    assert NOISE.text(ROWS[0]) != NOISE.text(ROWS[1])
    assert NOISE.text(ROWS[0]) == NOISE.text(np.asfortranarray(ROWS[0]))
    assert NOISE.text(ROWS[0]).startswith("sha256:")
    assert NOISE.stem(ROWS[0]) == ""
