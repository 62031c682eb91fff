from typing import Any

import numpy as np
import pytest
import torch
from sample_generators import Exported, ExportSmall, Small
from torch import Tensor

from latentry.contract.errors import ExportRefused
from latentry.export.proofs.first_difference import first_difference
from latentry.export.proofs.rows import ROUNDING, prove_rows
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine


def place(z: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for the rows: what no row alone and no neighbour's content changes."""
    return torch.cumsum(torch.ones_like(z[:, :1]), 0) - 1


def by_place(step: float) -> Any:
    """Return a forward whose samples change by ``step`` from place to place, as rounding does."""

    def forward(module: Small, z: Tensor) -> Tensor:
        return module.draw(z) + (step * place(z)).reshape(-1, 1, 1, 1)

    return forward


@pytest.fixture(scope="module")
def rounding(export_small: ExportSmall) -> Exported:
    return export_small(by_place(1e-7))


def test_rows_that_do_not_differ_are_computed_in_batches(small: Exported) -> None:
    finding = prove_rows(*small, 7)
    assert (finding.mode, finding.apart, finding.warnings) == ("batch", 0.0, ())


def test_what_only_rounds_is_computed_alone_with_its_cost(rounding: Exported) -> None:
    finding = prove_rows(*rounding, 8)
    assert finding.mode == "single"
    assert 0 < finding.apart < ROUNDING
    assert finding.parity.batch_sizes == (1, 3, 7, 8)
    assert finding.speed is not None
    assert finding.speed > 0
    assert finding.operator is not None
    assert finding.operator.startswith("CumSum")
    (warning,) = finding.warnings
    assert f"{finding.speed:.2f} times as many images" in warning


def test_the_operator_is_named_with_its_module(rounding: Exported) -> None:
    z = np.random.RandomState(0).randn(3, 8).astype(np.float32)
    found = first_difference(rounding.files["generator.onnx"], {"z": z})
    assert found is not None
    assert found.startswith("CumSum (node_cumsum")
    assert first_difference(rounding.files["generator.onnx"], {"z": z[:1]}) is None


def test_single_rows_of_it_are_equal_in_every_batch(rounding: Exported) -> None:
    z = np.random.RandomState(0).randn(9, 8).astype(np.float32)
    engine = OnnxRuntimeEngine(rounding.files["generator.onnx"], threads=3, rows="single")
    drawn = engine.run({"z": z}, ["image.sample"])["image.sample"]
    for row in range(9):
        alone = engine.run({"z": z[row : row + 1]}, ["image.sample"])["image.sample"]
        np.testing.assert_array_equal(drawn[row], alone[0])


def test_more_than_rounding_is_published_only_where_that_is_said(
    export_small: ExportSmall,
) -> None:
    exported = export_small(by_place(3e-6))
    message = r"more than rounding explains \(1e-05\); the first .* CumSum.*--rows single"
    with pytest.raises(ExportRefused, match=message):
        prove_rows(*exported, 8)
    assert prove_rows(*exported, 8, single=True).mode == "single"


def test_rows_that_reach_each_other_are_always_refused(export_small: ExportSmall) -> None:
    exported = export_small(lambda module, z: module.draw(z - z.mean(0, keepdim=True) * 1e-6))
    for single in (False, True):
        with pytest.raises(ExportRefused, match="rows reach each other"):
            prove_rows(*exported, 8, single=single)


def test_torch_must_not_depend_on_the_batch_by_more_than_the_tolerance(
    export_small: ExportSmall,
) -> None:
    exported = export_small(by_place(1e-3))
    with pytest.raises(ExportRefused, match=r"in ONNX Runtime and .* in torch at batch 3"):
        prove_rows(*exported, 8, single=True)
