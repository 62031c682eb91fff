from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sample_generators import Exported, ExportSmall
from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.export.proofs.parity import prove
from latentry.export.proofs.proof_bench import ProofBench, draw_rows, load_engines


def hand_made(rows: int, height: int = 4) -> dict[str, bytes]:
    """Return files whose outputs have ``rows`` rows whatever goes in."""
    values: dict[str, NDArray[Any]] = {
        "image": np.zeros((rows, height, 6, 1), np.uint8),
        "image.sample": np.zeros((rows, 1, height, 6), np.float32),
        "watch": np.zeros(rows, np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in values.items()
    ]
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "hand_made", [z], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return {"generator.onnx": model.SerializeToString()}


def test_a_graph_that_gives_another_number_of_rows_is_refused(small: Exported) -> None:
    message = (
        r"generator gives image of shape \[3, 4, 6, 1\] for a batch of 1, not 1 rows: .*len\(x\)"
    )
    with pytest.raises(ExportRefused, match=message):
        prove(small.module, small.spec, hand_made(3), 3)


def test_a_graph_that_gives_another_size_is_refused(small: Exported) -> None:
    message = r"generator gives image with rows of shape \[5, 6, 1\]; the spec says \[4, 6, 1\]"
    with pytest.raises(ExportRefused, match=message):
        prove(small.module, small.spec, hand_made(1, height=5), 3)


def test_a_frozen_graph_that_does_not_run_is_refused(export_small: ExportSmall) -> None:
    module, spec, files = export_small(
        lambda module, z: torch.stack([module.draw(z)[row] for row in range(len(z))])
    )
    with pytest.raises(ExportRefused, match=r"not run generator on a batch of 1(.|\n)*len\(x\)"):
        prove(module, spec, files, 3)


def test_bytes_that_are_no_onnx_are_refused(small: Exported) -> None:
    with pytest.raises(ExportRefused, match=r"ONNX Runtime cannot load generator\.onnx: "):
        prove(small.module, small.spec, {"generator.onnx": b"nothing"}, 3)


def test_a_module_that_fails_in_torch_is_named(small: Exported) -> None:
    bench = ProofBench(small.spec, load_engines(small.spec, small.files), nn.Linear(3, 3))
    rows = draw_rows(small.spec, 2)
    with pytest.raises(ExportRefused, match="generator of Linear fails in torch on a batch of 2: "):
        bench.run_torch(rows, rows, 2)


def test_rows_reach_the_ends_of_classes_and_truncation(
    conditional: Exported, mapped: Exported
) -> None:
    labels = draw_rows(conditional.spec, 8)["class_label"]
    assert labels.dtype == np.int64
    assert labels.shape == (8, 1)
    assert {0, 11} <= set(labels[:, 0].tolist())
    assert set(draw_rows(mapped.spec, 8)["class_label"][:, 0].tolist()) == {0, 1}
    psi = draw_rows(mapped.spec, 8)["truncation_psi"]
    assert set(psi[:, 0].tolist()) == {1.0, -0.5, 2.0, -2.0}
