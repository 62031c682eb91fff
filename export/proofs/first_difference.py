"""Which operator of a graph is the first that rounds a row otherwise beside other rows."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from latentry.contract.spec import WATCH
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import MODULE_NOTE
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

_AT_A_TIME = 24  # every tensor that is looked at stays in memory
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def first_difference(data: bytes, inputs: Arrays) -> str | None:
    """Return the first operator whose output for a batch is not that of its rows alone.

    Args:
        data: The graph.
        inputs: A batch of rows for which its outputs differ.

    Returns:
        The operator in words for people, such as ``Softplus (node_softplus) in layers.1``; None
        where no operator for itself differs, but only some of those that ONNX Runtime joins.
    """
    model = onnx.load_model_from_string(data)
    tensors = _float_tensors(model) & _reaching_outputs(model)
    nodes = [node for node in model.graph.node if tensors.intersection(node.output)]
    for start in range(0, len(nodes), _AT_A_TIME):
        part = nodes[start : start + _AT_A_TIME]
        names = [name for node in part for name in node.output if name in tensors]
        different = _differing(model, inputs, names)
        for node in part:
            if different.intersection(node.output):
                return _in_words(node)
    return None


def _differing(model: ModelProto, inputs: Arrays, names: Sequence[str]) -> set[str]:
    """Return which of the tensors ``names`` are others in a batch than alone."""
    looked_at = ModelProto()
    looked_at.CopyFrom(model)
    del looked_at.graph.output[:]
    looked_at.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    data = looked_at.SerializeToString()
    together = OnnxRuntimeEngine(data, threads=1).run(inputs, names)
    alone = OnnxRuntimeEngine(data, threads=1, rows="single").run(inputs, names)
    return {
        name
        for name in names
        # What is the same for all rows has no rows, and says nothing here.
        if together[name].shape == alone[name].shape
        and not np.array_equal(together[name], alone[name], equal_nan=True)
    }


def _float_tensors(model: ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.output]
    # A tensor without axes cannot be joined from those of single rows.
    return {
        value.name
        for value in values
        if value.type.tensor_type.elem_type in _FLOATS and value.type.tensor_type.shape.dim
    }


def _reaching_outputs(model: ModelProto) -> set[str]:
    """Return the tensors on which outputs depend that somebody is given."""
    found = {value.name for value in model.graph.output if value.name != WATCH}
    for node in reversed(model.graph.node):  # they stand in the order in which they run
        if found.intersection(node.output):
            found.update(node.input)
    return found


def _in_words(node: NodeProto) -> str:
    path = next((note.value for note in node.metadata_props if note.key == MODULE_NOTE), "")
    return f"{node.op_type} ({node.name or node.output[0]})" + (f" in {path}" if path else "")
