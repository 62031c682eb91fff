import numpy as np
import pytest

from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import TensorType
from latentry.contract.kinds.registry import output_from_any

DEPTH = output_from_any({"name": "depth", "kind": "tensor", "shape": [1, 4, 5]})


@pytest.mark.parametrize("image_format", list(Format))
def test_a_tensor_is_always_raw(image_format: Format) -> None:
    assert DEPTH.tensors(image_format) == {"depth": TensorType(np.float32, (1, 4, 5))}
    assert DEPTH.row_bytes(image_format) == 80


def test_a_tensor_comes_as_the_network_gave_it() -> None:
    torch = pytest.importorskip("torch")
    given = torch.rand(2, 1, 4, 5)
    found = DEPTH.from_network(given)
    assert list(found) == ["depth"]
    assert found["depth"] is given
    assert DEPTH.network_shape == (1, 4, 5)


def test_tensors_are_near_within_a_ten_thousandth_of_the_largest() -> None:
    rows = np.linspace(-50, 50, 40, dtype=np.float32).reshape(2, 1, 4, 5)
    moved = rows.copy()
    moved[0, 0, 2, 2] += 0.0049
    assert DEPTH.is_same_but_for_rounding(moved, rows)
    moved[0, 0, 2, 2] += 0.0005
    assert not DEPTH.is_same_but_for_rounding(moved, rows)


def test_a_tensor_may_be_of_one_value() -> None:
    assert not DEPTH.find_constant(np.zeros((2, 1, 4, 5), np.float32)).any()
