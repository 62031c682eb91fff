"""A checkpoint is a folder: ``generator.json`` and ``weights.safetensors``.

``generator.json`` says what the generator is, how to build it and where it comes from;
``weights.safetensors`` holds its tensors. A ``samples.png`` may lie beside them, for people only.
No pickle is ever written or opened: unpickling a file runs the code in it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import FiniteFloat, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from latentry.contract.errors import CheckpointError, listed
from latentry.contract.files import (
    open_regular,
    parse_json,
    publish_folder,
    read_regular,
    sha256_regular,
    write_new,
)
from latentry.contract.spec import GeneratorSpec, ModelName
from latentry.contract.strict import Strict, explain
from latentry.training.architectures import build

GENERATOR_FILE = "generator.json"
WEIGHTS_FILE = "weights.safetensors"
SAMPLES_FILE = "samples.png"

_MAX_HEADER_BYTES = 10_000_000  # some hundred bytes a tensor
_MAX_GENERATOR_BYTES = 16 * 2**20
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little-endian
_PICKLE_MAGICS = (b"\x80", b"PK")  # pickle protocol 2 and later; the zip that torch.save writes

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

# What wraps a module, by what it puts before the names of its tensors.
_WRAPPERS = {"module.": "nn.DataParallel", "_orig_mod.": "torch.compile"}


class DataSource(Strict):
    """Where training data comes from, under which licence, and what of it was used."""

    source: str
    licence: str
    detail: str


class Provenance(Strict):
    """How a generator came to be.

    Attributes:
        recipe: The recipe as it was run, overrides included.
        data: Every source of training data.
        metrics: What was measured on the generator's samples at the end.
        tools: Versions of the packages that took part.
        seed: The seed of the run.
        steps: Training steps done.
    """

    recipe: dict[str, JsonValue] = {}
    data: tuple[DataSource, ...] = ()
    metrics: dict[str, FiniteFloat] = {}
    tools: dict[str, str] = {}
    seed: int = 0
    steps: int = 0


class Checkpoint(Strict):
    """The content of ``generator.json``.

    Attributes:
        format: Version of this layout.
        name: The generator's name, which becomes the model's name when it is exported.
        architecture: A key of ``latentry.training.architectures.ARCHITECTURES``.
        config: The arguments of that architecture.
        spec: What the generator takes and gives.
        provenance: How it came to be.
    """

    format: Literal[2] = 2
    name: ModelName
    architecture: str
    config: dict[str, JsonValue]
    spec: GeneratorSpec
    provenance: Provenance = Provenance()


@dataclass(frozen=True)
class _DeclaredTensor:
    """One tensor as a header or a module declares it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    state_dict: Mapping[str, Tensor],
    samples_png: bytes | None = None,
) -> None:
    """Write a checkpoint folder whole or not at all; an older checkpoint there is replaced.

    Args:
        folder: The folder to make. Its parents are made too.
        checkpoint: What goes into ``generator.json``.
        state_dict: The generator's tensors by name.
        samples_png: A picture for people to look at, written as ``samples.png``.

    Raises:
        CheckpointError: ``folder`` exists and is no checkpoint, or a tensor holds NaN or infinity.
    """
    if folder.exists() and not (folder / GENERATOR_FILE).is_file():
        raise CheckpointError(
            f"{folder} exists and is no checkpoint, so it is not replaced; choose another folder"
        )
    tensors = {name: tensor.detach().contiguous() for name, tensor in state_dict.items()}
    _check_finite(tensors, f"the generator {checkpoint.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary, "new")
        made.mkdir()
        text = json.dumps(checkpoint.model_dump(mode="json"), indent=2) + "\n"
        write_new(made / GENERATOR_FILE, text.encode())
        write_new(made / WEIGHTS_FILE, save(tensors))
        if samples_png is not None:
            write_new(made / SAMPLES_FILE, samples_png)
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        publish_folder(made, folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return what ``generator.json`` says, without opening the weights.

    Raises:
        CheckpointError: The folder or the file is missing, or the file is no generator.json.
    """
    path = _existing(folder, GENERATOR_FILE)
    try:
        return Checkpoint.model_validate_json(read_regular(path, most=_MAX_GENERATOR_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise CheckpointError(
            f"{path} does not describe a checkpoint: {explain(error)}; "
            "correct it, or make the checkpoint again with `latentry train`"
        ) from error


def load_checkpoint(folder: Path) -> tuple[Checkpoint, nn.Module]:
    """Return a checkpoint and its generator, in evaluation mode and without gradients.

    Raises:
        CheckpointError: Something is missing or damaged, the weights do not fit the architecture,
            or the generator does not give what its spec says. The message names the file or the
            tensors, what was found, and what is expected.
    """
    checkpoint = read_checkpoint(folder)
    weights = _existing(folder, WEIGHTS_FILE)
    _check_declared(weights, _read_header(weights), _declared_by(_outline(checkpoint, folder)))
    module = build(checkpoint.architecture, checkpoint.config)
    load_weights(module, weights)
    _check_fits(module, checkpoint.spec, folder)
    return checkpoint, module


def _outline(checkpoint: Checkpoint, folder: Path) -> nn.Module:
    """Return the module without its tensors' memory, however large its config says that it is."""
    try:
        with torch.device("meta"):
            return build(checkpoint.architecture, checkpoint.config)
    except RuntimeError as error:  # sizes that are allowed, whose product is beyond 64 bits
        raise CheckpointError(
            f"{folder / GENERATOR_FILE} describes tensors that are too large: {error}; correct "
            "its config"
        ) from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``module``; then it is in evaluation mode without gradients.

    Names, shapes and dtypes must be exactly those of ``module.state_dict()``.

    Raises:
        CheckpointError: The file is missing, truncated, a pickle or no safetensors file; a tensor
            is missing, unknown, of another shape or dtype, or holds NaN or infinity.
    """
    _check_declared(path, _read_header(path), _declared_by(module))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged: {error}; copy it again from its origin"
        ) from error
    _check_finite(tensors, str(path))
    module.load_state_dict(tensors)
    module.eval().requires_grad_(False)


def checkpoint_digest(folder: Path) -> str:
    """Return the SHA-256 that names a checkpoint, as 64 hexadecimal digits.

    It is taken over the canonical JSON (sorted keys, no spaces, UTF-8) of the two files' digests,
    where ``generator.json`` counts by its content and not by its line breaks.

    Raises:
        CheckpointError: The folder or a file is missing, or ``generator.json`` is damaged.
    """
    content = read_checkpoint(folder).model_dump(mode="json")
    weights = sha256_regular(_existing(folder, WEIGHTS_FILE))
    generator = hashlib.sha256(_canonical(content)).hexdigest()
    both = _canonical({GENERATOR_FILE: generator, WEIGHTS_FILE: weights})
    return hashlib.sha256(both).hexdigest()


def _canonical(content: object) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; a checkpoint is a folder with {GENERATOR_FILE} and "
            f"{WEIGHTS_FILE}, as `latentry train` makes it"
        )
    if not os.path.lexists(folder / name):
        there = listed(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(
            f"{folder} has no {name} (it holds {there}); a checkpoint needs {GENERATOR_FILE} "
            f"and {WEIGHTS_FILE}"
        )
    return folder / name


def _read_header(path: Path) -> dict[str, _DeclaredTensor]:
    """Return the tensors that a safetensors file declares; its size must fit them."""
    try:
        opened = open_regular(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; give a safetensors file"
        ) from error
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH_BYTES + 1)
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        # The length may begin with the bytes of a pickle, so the brace after it decides.
        if start[_LENGTH_BYTES:] != b"{" or length > _MAX_HEADER_BYTES:
            raise CheckpointError(_explain_foreign(path, start))
        header = b"{" + file.read(length - 1)
    if len(header) < length:
        raise CheckpointError(_explain_truncated(path, size, _LENGTH_BYTES + length))
    try:
        declared = parse_json(header)
        declared.pop("__metadata__", None)
        ends = [int(item["data_offsets"][1]) for item in declared.values()]
        entries = {
            name: _DeclaredTensor(tuple(item["shape"]), _DTYPES[item["dtype"]])
            for name, item in declared.items()
        }
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a damaged safetensors header ({error!r}); copy it again from its origin"
        ) from error
    if size < (needed := _LENGTH_BYTES + length + max(ends, default=0)):
        raise CheckpointError(_explain_truncated(path, size, needed))
    return entries


def _declared_by(module: nn.Module) -> dict[str, _DeclaredTensor]:
    return {
        name: _DeclaredTensor(tuple(tensor.shape), tensor.dtype)
        for name, tensor in module.state_dict().items()
    }


def _explain_foreign(path: Path, start: bytes) -> str:
    if start.startswith(_PICKLE_MAGICS):
        return (
            f"{path} is a pickle; it is never opened because pickles execute code; "
            "convert it with safetensors.torch.save_file where you trust it"
        )
    return f"{path} is no safetensors file (it starts with {start!r}); give a safetensors file"


def _explain_truncated(path: Path, size: int, needed: int) -> str:
    return (
        f"{path} is truncated: it has {size:,} bytes and its header declares {needed:,}; "
        "copy it again from its origin"
    )


def _check_declared(
    path: Path, found: dict[str, _DeclaredTensor], expected: dict[str, _DeclaredTensor]
) -> None:
    findings = [f"{name}: missing, expected {expected[name]}" for name in expected.keys() - found]
    findings += [f"{name}: {found[name]} is not expected" for name in found.keys() - expected]
    findings += [
        f"{name}: found {found[name]}, expected {expected[name]}"
        for name in found.keys() & expected.keys()
        if found[name] != expected[name]
    ]
    for prefix, wrapper in _WRAPPERS.items():
        if found.keys() == {prefix + name for name in expected}:
            raise CheckpointError(
                f"{path} holds the weights of {wrapper}: every name begins with {prefix!r}; save "
                f"those of the module in it, {{name.removeprefix({prefix!r}): tensor for name, "
                "tensor in module.state_dict().items()}"
            )
    if findings:
        raise CheckpointError(
            f"{path} does not fit the architecture: {listed(sorted(findings), '; ')}; "
            "check the architecture and its config, or take the weights that belong to them"
        )


def _check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    findings = [
        f"{name}: {int(bad)} of {tensor.numel()} values"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and (bad := (~tensor.isfinite()).sum())
    ]
    if findings:
        raise CheckpointError(
            f"{owner} has weights that are NaN or infinite: {listed(sorted(findings), '; ')}; "
            "the training diverged or the file is damaged: train again or take an older one"
        )


def _check_fits(module: nn.Module, spec: GeneratorSpec, folder: Path) -> None:
    """Run two rows through the generator and compare with what the spec promises."""
    stage, *others = spec.pipeline
    if others or spec.networks != ("generator",):
        return
    inputs = {item.name: item for item in spec.inputs}
    rows = [
        inputs[name].to_network(torch.from_numpy(inputs[name].examples(2))) for name in stage.takes
    ]
    try:
        with torch.no_grad():
            made = module(*rows)
    except (IndexError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"the generator in {folder} does not take what its spec declares: {error}"
        ) from error
    outputs = {item.name: item for item in spec.outputs}
    found = [list(tensor.shape[1:]) for tensor in (made if isinstance(made, tuple) else (made,))]
    expected = [list(outputs[name].network_shape) for name in stage.gives]
    if found != expected:
        raise CheckpointError(
            f"the generator in {folder} gives samples of shape {' and '.join(map(str, found))}; "
            f"its spec says {' and '.join(map(str, expected))}; correct the spec or the config"
        )
