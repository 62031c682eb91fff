from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from latentry.contract.stages.registry import stage_from_any
from latentry.contract.stages.stage import OperationStage

W_AVG = [0.5, -0.25, 2.0]
FLOATS = st.floats(-1000, 1000, width=32)
LAYERS = arrays(np.float32, (4, 5, 3), elements=FLOATS)
PSIS = arrays(np.float32, (4, 1), elements=st.floats(-2, 2, width=32))


def truncate(w_avg: Any = W_AVG, *, cutoff: bool = False) -> OperationStage:
    takes = ["w", "truncation_psi", *(["truncation_cutoff"] if cutoff else [])]
    part = {"operation": "truncate", "takes": takes, "gives": ["moved"], "w_avg": w_avg}
    stage = stage_from_any(part)
    assert isinstance(stage, OperationStage)
    return stage


def numbers(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)[:, None]


@given(LAYERS, PSIS)
def test_w_moves_towards_the_average(w: np.ndarray[Any, Any], psi: np.ndarray[Any, Any]) -> None:
    (moved,) = truncate().run(w, psi)
    expected = np.array(W_AVG) + psi[:, :, None].astype(np.float64) * (w - np.array(W_AVG))
    assert moved.dtype == np.float32
    assert moved.shape == w.shape
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=2e-3)


@given(LAYERS)
def test_1_is_off_and_0_the_average_to_the_bit(w: np.ndarray[Any, Any]) -> None:
    (off,) = truncate().run(w, numbers(1, 1, 1, 1))
    np.testing.assert_array_equal(off, w)
    (average,) = truncate().run(w, numbers(0, 0, 0, 0))
    np.testing.assert_array_equal(average, np.broadcast_to(np.array(W_AVG, np.float32), w.shape))


@given(LAYERS, PSIS)
def test_a_row_is_moved_the_same_whatever_surrounds_it(
    w: np.ndarray[Any, Any], psi: np.ndarray[Any, Any]
) -> None:
    (together,) = truncate().run(w, psi)
    for row in range(4):
        part = slice(row, row + 1)
        np.testing.assert_array_equal(truncate().run(w[part], psi[part])[0], together[part])


@given(LAYERS, PSIS, arrays(np.int64, (4, 1), elements=st.integers(0, 7)))
def test_a_cutoff_leaves_the_layers_after_it(
    w: np.ndarray[Any, Any], psi: np.ndarray[Any, Any], cutoff: np.ndarray[Any, Any]
) -> None:
    (whole,) = truncate().run(w, psi)
    (moved,) = truncate(cutoff=True).run(w, psi, cutoff)
    for row, (layers,) in enumerate(cutoff):
        np.testing.assert_array_equal(moved[row, :layers], whole[row, :layers])
        np.testing.assert_array_equal(moved[row, layers:], w[row, layers:])


def test_each_row_has_its_own_psi() -> None:
    w = np.ones((3, 1, 3), np.float32)
    (moved,) = truncate([0.0, 0.0, 0.0]).run(w, numbers(0, 0.5, 1))
    assert moved[:, 0, 0].tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("psi", [-2, -0.5, 0.3, 0.5, 0.7, 1.5, 2])
def test_w_and_psi_are_left_alone(psi: float) -> None:
    w, psis = np.random.RandomState(0).randn(2, 3, 3).astype(np.float32), numbers(psi, psi)
    before = w.copy()
    truncate().run(w, psis)
    np.testing.assert_array_equal(w, before)
    assert psis.tolist() == numbers(psi, psi).tolist()


def test_the_average_may_be_left_out_until_an_export_fills_it_in() -> None:
    part = {"operation": "truncate", "takes": ["w", "truncation_psi"], "gives": ["moved"]}
    assert stage_from_any(part).w_avg is None  # type: ignore[union-attr]
    filled = stage_from_any({**part, "w_avg": W_AVG})
    assert stage_from_any(filled.model_dump()) == filled
    assert stage_from_any(filled) is filled
