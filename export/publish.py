"""From a checkpoint, or a user's own module, to a published entry: the whole road in one place.

Every step may refuse; only the last one writes, and it writes all or nothing.
"""

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import nn

from latentry.contract.errors import CheckpointError, LatentryError, SpecError
from latentry.contract.files import open_regular, read_regular
from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec, check_name, spec_from_json
from latentry.contract.system import time_now
from latentry.contract.wire import Arrays, input_row_bytes
from latentry.export.graphs.graph_checks import check_graphs
from latentry.export.graphs.onnx_export import OPSET, onnx_from_module
from latentry.export.preparation import NoiseMode, prepare
from latentry.export.proofs.proof_bench import load_engines
from latentry.export.proofs.rows import prove_rows
from latentry.export.sources.modules import check_stages, module_from_target
from latentry.export.sources.w_avg import with_w_avg
from latentry.serving.entries.examples import PERF_INPUT_FILE, example_request, perf_input
from latentry.serving.entries.goldens import GOLDEN_FILE, Goldens, golden_bytes, golden_count
from latentry.serving.entries.manifests import (
    MOST_GOLDENS,
    Build,
    ExportRecord,
    GoldenRecord,
    Model,
    RowMode,
    ServingPart,
    stored_model,
)
from latentry.serving.entries.publishing import Draft, publish
from latentry.serving.entries.repository import MODEL_FILE, MODEL_PY, Entry
from latentry.serving.entries.sealed import FileRecord, file_record
from latentry.serving.runtime.generator import Generator
from latentry.training.checkpoint import checkpoint_digest, load_checkpoint

_MOST_BATCH_BYTES = 32 * 2**20
_MOST_SPEC_BYTES = 16 * 2**20
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "latentry")


@dataclass(frozen=True)
class Source:
    """A generator to be exported.

    Attributes:
        name: Model name in the repository.
        spec: What it takes and gives.
        module: The network with its weights.
        architecture: How the network is called, for the record.
        digest: SHA-256 of what it was loaded from.
    """

    name: str
    spec: GeneratorSpec
    module: nn.Module
    architecture: str
    digest: str


def source_from_checkpoint(folder: Path, name: str | None = None) -> Source:
    """Return the generator in a checkpoint folder.

    Raises:
        CheckpointError: The folder is damaged; the message says how.
    """
    checkpoint, module = load_checkpoint(folder)
    return Source(
        name=check_name(name or checkpoint.name),
        spec=checkpoint.spec,
        module=module,
        architecture=checkpoint.architecture,
        digest=checkpoint_digest(folder),
    )


def source_from_target(target: str, weights: Path, spec: Path, name: str | None = None) -> Source:
    """Return a user's own generator: ``package.module:build``, its weights and its spec.

    The name is the module's own unless ``name`` is given.

    Raises:
        CheckpointError: The weights do not fit the module.
        SpecError: The spec file is missing or wrong.
        ExportRefused: The target cannot be built.
    """
    chosen = name or target.partition(":")[0].rpartition(".")[2].lower()
    check_name(chosen)
    try:
        text = read_regular(spec, most=_MOST_SPEC_BYTES)
    except OSError as error:
        raise SpecError(f"{spec} cannot be read: {error.strerror}") from error
    parsed = spec_from_json(text, str(spec))
    module = module_from_target(target, weights)
    try:
        digest = _digest(text, weights)
    except OSError as error:
        raise CheckpointError(f"{weights} cannot be read: {error.strerror}") from error
    return Source(chosen, parsed, module, target, digest)


def _digest(spec: bytes, weights: Path) -> str:
    """Return the SHA-256 of a spec and the weights after it, which are read in blocks."""
    digest = hashlib.sha256(spec)
    with open_regular(weights) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def export_generator(
    source: Source,
    repository: Path,
    *,
    max_batch_size: int | None = None,
    noise: NoiseMode | None = None,
    single_rows: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[Entry, bool]:
    """Export, prove and publish ``source``; return the entry and whether it is new.

    Args:
        source: The generator.
        repository: The model repository; made where it does not exist.
        max_batch_size: Largest batch that will be served, and up to which it is proved; None for
            32, or what 32 MiB of inputs and outputs allow.
        noise: What becomes of noise that the forward draws; None refuses it.
        single_rows: Compute rows alone also where they differ by more than rounding.
        on_step: Called with a line for people before each step.

    Raises:
        ExportRefused: A proof failed; nothing was written.
        LatentryError: The name is not allowed, or its other versions have other tensors.
    """
    spec = with_w_avg(source.module, source.spec)
    check_stages(source.module, spec)
    on_step("exporting to ONNX")
    prepared = prepare(source.module, spec, noise=noise)
    spec = prepared.spec
    artefacts = onnx_from_module(prepared.module, spec)
    check_graphs(spec, artefacts)
    max_batch_size = max_batch_size or usual_batch_size(spec)
    on_step(f"proving it against PyTorch at batches from 1 to {max_batch_size}")
    proof = prove_rows(prepared.module, spec, artefacts, max_batch_size, single=single_rows)
    on_step("drawing the goldens")
    generator = _generator(spec, artefacts, proof.mode)
    goldens = _draw(generator, example_request(spec, golden_count(spec)))
    model = stored_model(Model(spec=spec, networks=_records(artefacts)))
    files = {PERF_INPUT_FILE: perf_input(spec), MODEL_FILE: MODEL_PY}
    build_files = {GOLDEN_FILE: golden_bytes(goldens)}
    made = {
        "tools": {name: version(name) for name in _TOOLS},
        "host": f"{platform.system()}-{platform.machine()}",
        "created": time_now(),
    }
    record = ExportRecord(
        model=model.digest,
        checkpoint_digest=source.digest,
        architecture=source.architecture,
        opset=OPSET,
        files=_records(files),
        **made,
    )
    build = Build(
        model=model.digest,
        engine="onnxruntime",
        precision="fp32",
        rows=proof.mode,
        artefacts=_records(artefacts),
        parity=proof.parity.model_copy(
            update={"warnings": (*prepared.warnings, *proof.parity.warnings, *proof.warnings)}
        ),
        goldens=GoldenRecord(count=len(goldens), engine_class=generator.engine_class),
        files=_records(build_files),
        serving=ServingPart(max_batch_size=max_batch_size),
        **made,
    )
    on_step("publishing")
    draft = Draft(model, record, build, files, {**artefacts, **build_files})
    return publish(repository, source.name, draft)


def _records(files: Mapping[str, bytes]) -> dict[str, FileRecord]:
    return {name: file_record(data) for name, data in files.items()}


def usual_batch_size(spec: GeneratorSpec) -> int:
    """Return the largest batch of a generator that is told none."""
    inputs = input_row_bytes(spec, [item.name for item in spec.inputs])
    row = max(1, inputs + spec.row_bytes(Format.RAW))
    return max(1, min(ServingPart().max_batch_size, _MOST_BATCH_BYTES // row))


def _generator(spec: GeneratorSpec, artefacts: Mapping[str, bytes], rows: RowMode) -> Generator:
    engines = load_engines(spec, artefacts, rows=rows)
    return Generator(spec, engines, max_batch_size=MOST_GOLDENS)


def _draw(generator: Generator, inputs: Arrays) -> Goldens:
    answer = generator.answer([inputs])[0]
    if isinstance(answer, LatentryError):
        raise answer
    return Goldens(inputs, answer)
