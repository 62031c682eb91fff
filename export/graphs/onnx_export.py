"""PyTorch to ONNX: one file per stage, with the batch free and the image finished in the graph."""

import copy
import re
from collections.abc import Callable
from itertools import chain

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec, Role
from latentry.export.graphs.quiet import Noise, captured_noise
from latentry.export.sources.modules import check_stages

OPSET = 18
"""The operator set of every exported graph, the one torch's exporter writes without converting."""

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
    """Return the ONNX files of a generator, by file name.

    A spec without ``w`` gives ``generator.onnx`` of ``module(z[, class_label]) -> sample``. One
    with ``w`` gives ``mapping.onnx`` and ``synthesis.onnx`` of the submodules or methods
    ``module.mapping(z[, class_label]) -> w`` and ``module.synthesis(w) -> sample``. The module
    gets ``class_label`` as int64 [N]; ``sample`` is float32 [N, C, H, W], nominally in [-1, 1].

    Inputs of the graphs are called after their roles and have rows of the spec's shape (so
    ``class_label`` is int64 [N, 1]); the batch is dynamic. ``mapping`` gives ``w``. The last stage
    gives ``image``, uint8 [N, H, W, C], ``clamp(sample * 127.5 + 128, 0, 255)`` truncated;
    ``sample`` itself; and ``peak``, float32 [N], the largest absolute value of each sample, which
    is infinite where the sample holds NaN.

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
    example = _example_inputs(spec)
    artefacts = {}
    for stage, roles in spec.stages.items():
        inputs = tuple(example[role] for role in roles)
        example[Role.W] = _try_stage(plain, spec, stage, inputs)
        artefacts[f"{stage}.onnx"] = _export_stage(plain, spec, stage, inputs)
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


def stage_network(module: nn.Module, stage: str) -> Callable[..., Tensor]:
    """Return what runs ``stage`` of ``module``: the module itself, its mapping or its synthesis."""
    network: Callable[..., Tensor] = module if stage == "generator" else getattr(module, stage)
    return network


def output_rows(spec: GeneratorSpec, stage: str) -> dict[str, tuple[int, ...]]:
    """Return what the graph of ``stage`` gives, in order: output name to shape of one row."""
    if stage == "mapping" and spec.w is not None:
        return {"w": spec.w.row_shape}
    height, width, channels = spec.image.row_shape
    return {
        "image": (height, width, channels),
        "sample": (channels, height, width),
        "peak": (),
    }


def _example_inputs(spec: GeneratorSpec) -> dict[Role, Tensor]:
    """Return a few rows of the graph inputs of the first stage, all zero."""
    return {
        role: torch.zeros(
            (_EXAMPLE_ROWS, *item.row_shape),
            dtype=torch.int64 if role is Role.CLASS_LABEL else torch.float32,
        )
        for role in (Role.Z, Role.CLASS_LABEL)
        if (item := spec.find(role))
    }


class _StageGraph(nn.Module):
    """What becomes the graph of one stage: it takes and gives what crosses to the engine."""

    def __init__(self, module: nn.Module, stage: str) -> None:
        super().__init__()
        self.module = module
        self.stage = stage
        self.eval()

    def forward(
        self, latent: Tensor, class_label: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        network = stage_network(self.module, self.stage)
        output = network(latent, class_label[:, 0]) if class_label is not None else network(latent)
        return output if self.stage == "mapping" else _finish_image(output)


def _finish_image(sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, sample and peak of float32 [N, C, H, W]."""
    image = (sample * 127.5 + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    # ReduceMax of ONNX Runtime passes over NaN at most positions; 0 times what is not finite is
    # NaN, and no sum loses that.
    peak = sample.abs().amax((1, 2, 3)) + (sample * 0.0).sum((1, 2, 3))
    return image, sample, peak


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


def _try_stage(
    module: nn.Module, spec: GeneratorSpec, stage: str, inputs: tuple[Tensor, ...]
) -> Tensor:
    """Run ``stage`` once, so that a plain mistake gets a plain message; return its output."""
    latent, *labels = inputs
    asked = f"{stage} of {type(module).__name__}"
    try:
        with torch.no_grad():
            output = stage_network(module, stage)(latent, *(label[:, 0] for label in labels))
    except Exception as error:  # a user's forward may raise anything
        given = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise ExportRefused(
            f"{asked} fails on {', '.join(spec.stages[stage])} of shape {given}: "
            f"{type(error).__name__}: {error}; correct the forward or the spec"
        ) from error
    if not isinstance(output, Tensor) or output.dtype != torch.float32:
        found = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ExportRefused(f"{asked} gives {found}; it must give one float32 tensor")
    rows = output_rows(spec, stage)
    expected = [_EXAMPLE_ROWS, *rows.get("sample", rows.get("w", ()))]
    if list(output.shape) != expected:
        axes = "num_ws, w_dim" if stage == "mapping" else "channels, height, width"
        raise ExportRefused(
            f"{asked} gives shape {list(output.shape)} for {_EXAMPLE_ROWS} rows; the spec says "
            f"{expected} (batch, {axes}); correct the module or the spec"
        )
    return output


def _export_stage(
    module: nn.Module, spec: GeneratorSpec, stage: str, inputs: tuple[Tensor, ...]
) -> bytes:
    with captured_noise() as noise:
        try:
            program = torch.onnx.export(
                _StageGraph(module, stage),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=[str(role) for role in spec.stages[stage]],
                output_names=list(output_rows(spec, stage)),
                dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter passes on whatever a forward or a pass raises
            raise ExportRefused(_explain_failure(stage, error, noise)) from error
    if program is None:
        raise ExportRefused(f"{stage}: torch.onnx.export gave no program")
    return _checked_bytes(program.model_proto, stage)


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
    """Remove the exporter's notes, which hold source files and stack traces, from ``graph``."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in chain(graph.input, graph.output, graph.value_info, graph.initializer, graph.node):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        for attribute in node.attribute:
            for inner in chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                _strip_notes(inner)
