"""PyTorch to ONNX: one file a network, with the batch free and pictures finished in the graph."""

import ast
import copy
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latentry.contract.errors import ExportRefused
from latentry.contract.kinds.kind import FREE, OutputKind, does_fit
from latentry.contract.kinds.picture import SideRange
from latentry.contract.spec import WATCH, GeneratorSpec
from latentry.contract.stages.stage import NetworkStage, OperationStage
from latentry.export.graphs.modulation import separate_modulation
from latentry.export.graphs.quiet import Noise, captured_noise
from latentry.export.graphs.row_graph import row_graph, spread_over_rows
from latentry.export.sources.modules import check_stages

OPSET = 18
"""The operator set of every exported graph, the one torch's exporter writes without converting."""

MODULE_NOTE = "module"
"""Under this key a node of an exported graph says which module computes it, by its path."""

FROZEN_BATCH_CAUSES = (
    "the batch was frozen when the graph was traced; usual causes: len(x) in the forward (take "
    "x.shape[0]), int(x.shape[0]) or a list or NumPy array made of shapes, a view or reshape with "
    "a fixed first size (take -1 there and fixed sizes elsewhere), a loop over the rows, a tensor "
    "made for one batch size and kept"
)
"""What to tell people whose graph takes one batch size only."""

_ADVICE = (
    "replace the operation named here by plain tensor operations; where the forward branches on a "
    "tensor's values (if x.sum() > 0), take torch.where; take .item(), .tolist() and .numpy() out"
)
_EXAMPLE_ROWS = 3  # any number would do; 1 is often special to a forward
_MOST_BYTES = 2**31 - 2**20  # protobuf's limit for one file, less room for the graph itself


def onnx_from_module(module: nn.Module, spec: GeneratorSpec) -> dict[str, bytes]:
    """Return the ONNX files of a generator, one for each of its networks, by file name.

    A network called ``generator`` is the module's forward, any other its submodule or method of
    that name. It is called with the tensors that its stage takes, in order, as their kinds give
    them (a class as int64 [N], a picture as float32 [N, C, H, W] in its range, ...) and returns one
    tensor, or a tuple in the order of what it gives.

    The graphs take and give what crosses the wire: rows of the spec's shapes with a dynamic batch,
    pictures as uint8 [N, H, W, C], beside them ``X.sample`` and ``watch``
    (:meth:`GeneratorSpec.graph_outputs`).

    The same module gives the same bytes, wherever and whenever it is exported: what the exporter
    notes about source files and its own version is taken out. ``module`` is not changed; a copy on
    the CPU in evaluation mode is exported, its parametrizations (spectral and weight norm) made
    plain weights and BatchNorm folded into the convolution or linear layer before it.

    Args:
        module: The generator, with float32 weights.
        spec: What it takes and gives.

    Raises:
        ExportRefused: The module does not run as the spec says, the exporter does not manage it,
            or the resulting file is not valid.
    """
    check_stages(module, spec)
    _check_size(module)
    plain = _flatten_parametrizations(eval_copy(module))
    board = example_rows(spec, _EXAMPLE_ROWS)
    artefacts = {}
    for stage in spec.pipeline:
        rows = tuple(board[name] for name in stage.takes)
        if isinstance(stage, NetworkStage):
            graph = StageGraph(plain, spec, stage)
            board |= zip(stage.gives, _try_stage(graph, rows), strict=True)
            artefacts[f"{stage.network}.onnx"] = _export_stage(graph, rows)
        else:
            board |= run_operation(stage, rows)
    return artefacts


def eval_copy(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` on the CPU, in evaluation mode and without gradients.

    Raises:
        ExportRefused: It cannot be copied.
    """
    try:
        duplicate = copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise ExportRefused(
            f"{type(module).__name__} cannot be copied ({error}); where it uses the old "
            "torch.nn.utils.weight_norm, take torch.nn.utils.parametrizations.weight_norm"
        ) from error
    return duplicate.cpu().eval().requires_grad_(False)


class StageGraph(nn.Module):
    """One network between rows as they cross the wire; this is what becomes a graph.

    Attributes:
        spec: What the generator takes and gives.
        stage: The network's stage.
    """

    def __init__(self, module: nn.Module, spec: GeneratorSpec, stage: NetworkStage) -> None:
        super().__init__()
        self.module = module
        self.spec = spec
        self.stage = stage
        self.eval()

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of :meth:`GeneratorSpec.graph_outputs`, in their order."""
        found: dict[str, Tensor] = {}
        watches = []
        for name, output in zip(self.stage.gives, self.network_outputs(*rows), strict=True):
            kind = self.spec.find_output(name)
            found |= {name: output} if kind is None else kind.from_network(output)
            if kind is not None:
                # No ReduceMax: that of ONNX Runtime passes over NaN at most positions.
                watches.append(output.sum(tuple(range(1, output.dim()))))
        if watches:
            found[WATCH] = sum(watches[1:], watches[0])
        return tuple(found[name] for name in self.spec.graph_outputs(self.stage))

    def network_outputs(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the network itself gives for rows of what it takes."""
        network = network_of(self.module, self.stage.network)
        output = network(*self.network_inputs(*rows))
        return output if isinstance(output, tuple) else (output,)

    def network_inputs(self, *rows: Tensor) -> list[Tensor]:
        """Return what the network itself gets for rows of what it takes."""
        given = []
        for name, tensor in zip(self.stage.takes, rows, strict=True):
            kind = self.spec.find(name)
            # A tensor that a stage has made comes as it was made.
            given.append(tensor if kind is None else kind.to_network(tensor))
        return given

    @property
    def name(self) -> str:
        """The network and its module, for messages."""
        return f"{self.stage.network} of {type(self.module).__name__}"


def network_of(module: nn.Module, name: str) -> Callable[..., Any]:
    """Return what runs the network ``name``: the module itself, its submodule or its method."""
    network: Callable[..., Any] = module if name == "generator" else getattr(module, name)
    return network


def example_rows(spec: GeneratorSpec, count: int) -> dict[str, Tensor]:
    """Return ``count`` rows of every input, as they cross the wire."""
    return {item.name: torch.from_numpy(item.examples(count)) for item in spec.inputs}


def run_operation(stage: OperationStage, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what an operation gives for rows of what it takes, by name."""
    widened = (row.float() if row.is_floating_point() else row for row in rows)
    made = stage.run(*(row.numpy() for row in widened))
    return dict(zip(stage.gives, map(torch.from_numpy, made), strict=True))


def _flatten_parametrizations(module: nn.Module) -> nn.Module:
    """Make the weights of spectral norm, weight norm and the like plain tensors, in place.

    ``parametrize.remove_parametrizations`` would not do: it changes the class that a module shares
    with its copies, and so breaks the caller's module.
    """
    for child in list(module.modules()):
        parametrizations = getattr(child, "parametrizations", None)
        if isinstance(parametrizations, nn.ModuleDict):
            with torch.no_grad():
                weights = {name: getattr(child, name) for name in parametrizations}
            child.__class__ = parametrize.type_before_parametrizations(child)
            del child.parametrizations
            for name, weight in weights.items():
                child.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return module


def _check_size(module: nn.Module) -> None:
    tensors = chain(module.parameters(), module.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _MOST_BYTES:
        raise ExportRefused(
            f"the weights take {size / 2**30:.2f} GiB; one ONNX file holds at most 2 GiB; "
            "export a smaller generator"
        )


def _try_stage(graph: StageGraph, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run a network once, so that a plain mistake gets a plain message; return its outputs."""
    try:
        with torch.no_grad():
            outputs = graph.network_outputs(*rows)
    except Exception as error:  # a user's forward may raise anything
        given = ", ".join(str(list(tensor.shape)) for tensor in graph.network_inputs(*rows))
        raise ExportRefused(
            f"{graph.name} fails on {', '.join(graph.stage.takes)} of shape {given}: "
            f"{type(error).__name__}: {error}; correct the forward or the spec (inputs stand in "
            "the order of the forward's arguments)"
        ) from error
    if len(outputs) != len(graph.stage.gives):
        raise ExportRefused(
            f"{graph.name} gives {len(outputs)} tensors; the spec says {len(graph.stage.gives)}: "
            f"{', '.join(graph.stage.gives)}"
        )
    for name, output in zip(graph.stage.gives, outputs, strict=True):
        _check_output(graph, name, output)
    return outputs


def _check_output(graph: StageGraph, name: str, output: object) -> None:
    """Compare what a network gives with what the spec says of it."""
    if not isinstance(output, Tensor) or output.dtype != torch.float32:
        found = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ExportRefused(f"{graph.name} gives {name} as {found}; it must be a float32 tensor")
    kind, item = graph.spec.find_output(name), graph.spec.find(name)
    if kind is None and item is None:
        return  # between two networks; nobody else sees it
    row = kind.network_shape if kind else item.row_shape if item else ()
    pattern = tuple(FREE if length is None else length for length in row)
    if output.shape[0] != _EXAMPLE_ROWS or not does_fit(tuple(output.shape[1:]), pattern):
        raise ExportRefused(
            f"{graph.name} gives {name} of shape {list(output.shape)} for {_EXAMPLE_ROWS} rows; "
            f"the spec says {[_EXAMPLE_ROWS, *row]}{_axes(kind)}; correct the module or the spec"
        )


def _axes(kind: OutputKind | None) -> str:
    """Return what the axes of a network's output are called, for messages."""
    return {
        "picture": " (batch, channels, height, width)",
        "mask": " (batch, 1, height, width)",
        "label_map": " (batch, labels, height, width)",
    }.get(kind.kind if kind else "", "")


def _export_stage(graph: StageGraph, rows: tuple[Tensor, ...]) -> bytes:
    with captured_noise() as noise:
        try:
            # One star argument takes all rows, so its shapes are a level deeper.
            model = _traced(graph, graph, rows, (_dynamic_shapes(graph, rows),))
        except Exception as error:  # the exporter passes on whatever a forward or a pass raises
            by_row = _traced_by_row(graph, rows)
            if by_row is None:
                raise ExportRefused(_explain_failure(graph.stage.network, error, noise)) from error
            model = by_row
        else:
            if not _batch_is_free(model):
                model = _traced_by_row(graph, rows) or model
    return _checked_bytes(model, graph.stage.network)


def _traced(
    network: nn.Module, graph: StageGraph, rows: tuple[Tensor, ...], shapes: tuple[Any, ...]
) -> onnx.ModelProto:
    """Return the ONNX graph of ``network``, which takes and gives what ``graph`` does."""
    program = torch.onnx.export(
        network,
        rows,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(graph.spec.graph_inputs(graph.stage).values()),
        output_names=list(graph.spec.graph_outputs(graph.stage)),
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ExportRefused(f"{graph.stage.network}: torch.onnx.export gave no program")
    return program.model_proto


def _traced_by_row(graph: StageGraph, rows: tuple[Tensor, ...]) -> onnx.ModelProto | None:
    """Return the graph of a forward whose batch gets frozen, made of one row; None if in vain.

    Raises:
        ExportRefused: A convolution's weights depend on the row in a way that no graph can have.
    """
    if graph.spec.free_inputs:
        return None  # a row's sizes would be frozen instead
    try:
        by_row = row_graph(graph, tuple(tensor[:1] for tensor in rows))
        separate_modulation(by_row)
        spread_over_rows(by_row)
        model = _traced(by_row, graph, rows, _dynamic_shapes(graph, rows))
    except ExportRefused:
        raise
    except Exception:  # what the forward does as it stands is told instead
        return None
    return model if _batch_is_free(model) else None


def _batch_is_free(model: onnx.ModelProto) -> bool:
    """Whether no input and no output of the graph has a fixed number of rows."""
    values = chain(model.graph.input, model.graph.output)
    firsts = (dim for value in values for dim in value.type.tensor_type.shape.dim[:1])
    return not any(dim.dim_value for dim in firsts)


def _dynamic_shapes(graph: StageGraph, rows: tuple[Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Return which axes of a network's inputs are free: the batch, and sizes of pictures.

    Sides of one range are one length, as requests have them.
    """
    batch, sides = torch.export.Dim("batch"), dict[tuple[int, SideRange], Any]()
    shapes = []
    for name, tensor in zip(graph.stage.takes, rows, strict=True):
        item = graph.spec.find(name)
        shape: dict[int, Any] = {0: batch}
        if item is None and graph.spec.free_inputs:  # of a stage before, in whatever size
            shape |= dict.fromkeys(range(1, tensor.dim()), torch.export.Dim.AUTO)
        for axis, side in ((1, getattr(item, "height", 0)), (2, getattr(item, "width", 0))):
            if isinstance(side, SideRange):
                shape[axis] = sides.setdefault((axis, side), _dimension(len(sides), side))
        shapes.append(shape)
    return tuple(shapes)


def _dimension(index: int, side: SideRange) -> Any:
    step = side.multiple_of
    steps = torch.export.Dim(f"side{index}", min=side.minimum // step, max=side.maximum // step)
    return step * steps if step > 1 else steps


def _explain_failure(stage: str, error: Exception, noise: Noise) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = _essence(str(cause))
    advice = FROZEN_BATCH_CAUSES if "Constraints violated" in reason else _ADVICE
    said = f"\nthe exporter said:\n{noise}" if str(noise) else ""
    return (
        f"torch's ONNX exporter cannot export {stage}: {type(cause).__name__}: {reason}\n"
        f"what to try: {advice}{said}"
    )


def _essence(text: str) -> str:
    """Return the first paragraph of torch's long errors, and the line of the forward they name."""
    head, _, rest = text.strip().partition("\n\n")
    where = re.search(r'File ".*\n.*', rest)
    return f"{head}\n{where[0]}" if where else head


def _checked_bytes(model: onnx.ModelProto, stage: str) -> bytes:
    """Return the bytes of a valid model of opset 18, without where and when it was made."""
    versions = {item.domain: item.version for item in model.opset_import}
    if versions.get("") != OPSET:
        raise ExportRefused(
            f"{stage} came out with operator sets {versions} and must have {OPSET}: "
            "an operation in it exists only in another version; replace it"
        )
    model.producer_name, model.producer_version, model.doc_string = "latentry", "", ""
    del model.metadata_props[:]
    _strip_notes(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportRefused(
            f"the exporter wrote an invalid {stage}.onnx: {error}; "
            "replace the operation named here by plain tensor operations"
        ) from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _strip_notes(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes, which hold source files and stack traces, from ``graph``.

    What stays is the path of the module that a node was made for.
    """
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        path = _module_path(node)
        node.doc_string = ""
        del node.metadata_props[:]
        if path:
            node.metadata_props.add(key=MODULE_NOTE, value=path)
        for attribute in node.attribute:
            for inner in chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                _strip_notes(inner)


def _module_path(node: onnx.NodeProto) -> str:
    """Return the path of the module in which the exporter found ``node``, such as ``up.0``."""
    notes = {note.key: note.value for note in node.metadata_props}
    # Such as ['', 'module', 'module.up', 'module.up.0', 'conv2d'].
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]).removeprefix("module").removeprefix(".") if len(scopes) > 1 else ""
