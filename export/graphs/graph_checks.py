"""What an exported graph must not hold, found by reading it, before anything runs."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from latentry.contract.errors import ExportRefused, listed
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.export.graphs.onnx_export import FROZEN_BATCH_CAUSES, OPSET

_RANDOM = frozenset(
    (
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
    )
)
_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml"))
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}

Row = tuple[int, Sequence[int] | None]
"""Element type and row shape; None where only the module knows."""


def check_graphs(spec: GeneratorSpec, artefacts: Mapping[str, bytes]) -> None:
    """Check the graphs of a generator (file name to ONNX bytes) against its spec.

    Refused are random operators and others that behave as in training; operators that are not
    plain ONNX, local functions and data outside the file; inputs and outputs with other names,
    types or shapes than the spec's; and a batch that is not free.

    Raises:
        ExportRefused: With everything that was found, one finding a line, and what to do about it.
    """
    findings = []
    for stage in spec.pipeline:
        if not isinstance(stage, NetworkStage):
            continue
        file = f"{stage.network}.onnx"
        if file not in artefacts:
            there = listed(sorted(artefacts)) or "nothing"
            raise ExportRefused(f"the spec needs {file}; what is there: {there}")
        model = onnx.load_model_from_string(artefacts[file])
        findings += [f"{file}: {finding}" for finding in _find_faults(model, spec, stage)]
    if findings:
        raise ExportRefused(listed(findings, "\n"))


def _find_faults(model: ModelProto, spec: GeneratorSpec, stage: NetworkStage) -> Iterator[str]:
    versions = {item.domain: item.version for item in model.opset_import}
    if versions.get("", versions.get("ai.onnx")) != OPSET:
        yield f"its operator sets are {versions}; it must have {OPSET}; export it again"
    for function in model.functions:
        yield (
            f"it has the local function {function.domain}::{function.name}; "
            "export with plain ONNX operators only"
        )
    known = _false_constants(model.graph)
    for node in _all_nodes(model.graph):
        yield from _find_node_faults(node, known)
    for tensor in _all_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield f"the weights {tensor.name} lie in another file; export with external_data=False"
    inputs, outputs = _expected(spec, stage)
    yield from _find_interface_faults("input", model.graph.input, inputs)
    yield from _find_interface_faults("output", model.graph.output, outputs)
    yield from _find_frozen_batch([*model.graph.input, *model.graph.output])


def _find_node_faults(node: NodeProto, false_constants: frozenset[str]) -> Iterator[str]:
    named = f"{node.op_type} ({node.name or ', '.join(node.output)})"
    if node.domain not in _DOMAINS:
        yield (
            f"the operator {named} is of the domain {node.domain!r}, which only some engines have; "
            "write it with plain tensor operations"
        )
    elif node.op_type in _RANDOM:
        yield (
            f"the operator {named} draws random numbers, so a seed would not fix its image; make "
            "the noise an input or a constant: a buffer drawn once, or computed from z"
        )
    elif node.op_type == "Dropout" and _is_training(node, false_constants):
        yield (
            f"the operator {named} drops at random, as in training; use nn.Dropout, which eval() "
            "turns off, or pass training=self.training"
        )
    elif node.op_type == "BatchNormalization" and any(
        attribute.name == "training_mode" and attribute.i for attribute in node.attribute
    ):
        yield (
            f"the operator {named} takes its statistics from the batch, as in training, so an "
            "image would depend on its neighbours; use running statistics, which eval() turns on"
        )


def _is_training(dropout: NodeProto, false_constants: frozenset[str]) -> bool:
    return len(dropout.input) > 2 and dropout.input[2] not in {"", *false_constants}


def _find_interface_faults(
    kind: str, found: Sequence[ValueInfoProto], expected: Mapping[str, Row]
) -> Iterator[str]:
    names = [value.name for value in found]
    if set(names) != set(expected):
        yield f"its {kind}s are {listed(names)}; the spec asks for {listed(expected)}"
        return
    for value in found:
        element_type, row_shape = expected[value.name]
        tensor = value.type.tensor_type
        if tensor.elem_type != element_type:
            yield (
                f"the {kind} {value.name} is {TensorProto.DataType.Name(tensor.elem_type)}; "
                f"it must be {TensorProto.DataType.Name(element_type)}"
            )
        sizes = [dim.dim_value or None for dim in tensor.shape.dim][1:]
        if row_shape is not None and not _may_be(row_shape, sizes):
            yield (
                f"the {kind} {value.name} has rows of shape {sizes}; the spec says "
                f"{[*row_shape]}; correct the spec or the module"
            )


def _find_frozen_batch(values: Sequence[ValueInfoProto]) -> Iterator[str]:
    sizes = {
        value.name: dims[0].dim_value
        for value in values
        if (dims := value.type.tensor_type.shape.dim) and dims[0].dim_value
    }
    if sizes:
        size = listed(sorted(set(sizes.values())))
        yield f"{listed(sizes)} can only be batches of {size}: {FROZEN_BATCH_CAUSES}"


def _may_be(expected: Sequence[int], found: Sequence[int | None]) -> bool:
    """Whether a shape agrees where its sizes are known; parity sees the others."""
    return len(expected) == len(found) and all(
        size is None or size == wanted for wanted, size in zip(expected, found, strict=True)
    )


def _expected(spec: GeneratorSpec, stage: NetworkStage) -> tuple[dict[str, Row], dict[str, Row]]:
    """Return what the graph of a network takes and gives."""
    inputs: dict[str, Row] = {}
    for name, graph_name in spec.graph_inputs(stage).items():
        item = spec.find(name)
        inputs[graph_name] = (
            (TensorProto.FLOAT, None)
            if item is None
            else (_TYPES[np.dtype(item.dtype).name], item.row_shape)
        )
    outputs: dict[str, Row] = {
        name: (TensorProto.FLOAT, None)
        if kind is None
        else (_TYPES[np.dtype(kind.dtype).name], kind.row_shape)
        for name, kind in spec.graph_outputs(stage).items()
    }
    return inputs, outputs


def _all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield ``graph`` and the bodies of its loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _all_graphs(inner)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for inner in _all_graphs(graph):
        yield from inner.node


def _all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    for inner in _all_graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t


def _false_constants(graph: GraphProto) -> frozenset[str]:
    """Return the names of the constants that say False, as a Dropout in evaluation mode has."""
    return frozenset(
        tensor.name
        for inner in _all_graphs(graph)
        for tensor in inner.initializer
        if tensor.data_type == TensorProto.BOOL and not onnx.numpy_helper.to_array(tensor).any()
    )
