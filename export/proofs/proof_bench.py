"""The proof bench: ONNX Runtime and torch, fed with the same rows in batches of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec, Role, TruncationPsiInput
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import FROZEN_BATCH_CAUSES, output_rows, stage_network
from latentry.serving.runtime.engines import Engine
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.serving.runtime.generator import truncate


@dataclass(frozen=True)
class ProofBench:
    """Both engines, fed with the same rows: arrays by role, one row a sample.

    Attributes:
        spec: What the generator takes and gives.
        module: It in PyTorch, on the CPU in evaluation mode.
        engines: It in ONNX Runtime, by stage.
    """

    spec: GeneratorSpec
    module: nn.Module
    engines: Mapping[str, Engine]

    def run_onnx(self, rows: Arrays, size: int) -> Arrays:
        """Return every output of every stage for ``rows``, drawn ``size`` at a time.

        Raises:
            ExportRefused: A graph does not run on such a batch, or gives another number of rows
                or other shapes than it must.
        """
        parts = []
        for part in _split(rows, size):
            outputs: dict[str, NDArray[Any]] = {}
            for stage in self.spec.stages:
                outputs |= self._run_graph(stage, self._inputs(stage, part, outputs))
            parts.append(outputs)
        return _join(parts)

    def run_torch(self, rows: Arrays, served: Arrays, size: int) -> Arrays:
        """Return what the module itself gives for ``rows``: ``sample``, and ``w`` where it has it.

        So that each stage is compared for itself, synthesis gets the w in ``served``, the one that
        ONNX Runtime made.

        Raises:
            ExportRefused: The module raised an error.
        """
        parts = []
        for part, made in zip(_split(rows, size), _split(served, size), strict=True):
            outputs: dict[str, NDArray[Any]] = {}
            for stage in self.spec.stages:
                name = "w" if stage == "mapping" else "sample"
                outputs[name] = self._run_module(stage, self._inputs(stage, part, made))
            parts.append(outputs)
        return _join(parts)

    def _inputs(self, stage: str, rows: Arrays, made: Arrays) -> Arrays:
        if stage == "synthesis" and self.spec.w is not None:
            w_avg = np.array(self.spec.w.w_avg, np.float32)
            return {Role.W: truncate(made["w"], w_avg, rows[Role.TRUNCATION_PSI])}
        return {role: rows[role] for role in self.spec.stages[stage]}

    def _run_graph(self, stage: str, inputs: Arrays) -> Arrays:
        count = count_rows(inputs)
        shapes = output_rows(self.spec, stage)
        try:
            outputs = self.engines[stage].run(inputs, list(shapes))
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ExportRefused(
                f"ONNX Runtime does not run {stage} on a batch of {count}: {error}\n"
                f"where another size works, {FROZEN_BATCH_CAUSES}"
            ) from error
        for name, array in outputs.items():
            if array.shape[:1] != (count,):
                raise ExportRefused(
                    f"{stage} gives {name} of shape {list(array.shape)} for a batch of {count}, "
                    f"not {count} rows: {FROZEN_BATCH_CAUSES}"
                )
            if array.shape[1:] != shapes[name]:
                raise ExportRefused(
                    f"{stage} gives {name} with rows of shape {list(array.shape[1:])}; the spec "
                    f"says {list(shapes[name])}; correct the spec or the module"
                )
        return outputs

    def _run_module(self, stage: str, inputs: Arrays) -> NDArray[np.float32]:
        latent, *labels = (torch.from_numpy(array) for array in inputs.values())
        try:
            with torch.no_grad():
                output = stage_network(self.module, stage)(latent, *(row[:, 0] for row in labels))
            array: NDArray[np.float32] = output.numpy()
        except Exception as error:  # a user's forward may raise anything
            raise ExportRefused(
                f"{stage} of {type(self.module).__name__} fails in torch on a batch of "
                f"{len(latent)}: {type(error).__name__}: {error}"
            ) from error
        return array


def load_engines(
    spec: GeneratorSpec, artefacts: Mapping[str, bytes], *, threads: int = 0
) -> dict[str, Engine]:
    """Return the engines of ``artefacts`` (file name to ONNX bytes) by stage.

    ``threads`` 0 means one for each core.

    Raises:
        ExportRefused: ONNX Runtime does not load one of them.
    """
    engines: dict[str, Engine] = {}
    for stage in spec.stages:
        try:
            engines[stage] = OnnxRuntimeEngine(artefacts[f"{stage}.onnx"], threads=threads)
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ExportRefused(f"ONNX Runtime cannot load {stage}.onnx: {error}") from error
    return engines


def draw_rows(spec: GeneratorSpec, count: int) -> Arrays:
    """Return z of seeds 0 .. count-1, with classes and truncations spread over their ranges."""
    rows: dict[str, NDArray[Any]] = {Role.Z: LatentDrawer(spec.z_dim).draw(range(count))}
    if spec.classes:
        labels = np.rint(np.linspace(0, len(spec.classes) - 1, count))
        rows[Role.CLASS_LABEL] = labels.astype(np.int64)[:, None]
    psi = spec.find(Role.TRUNCATION_PSI)
    if isinstance(psi, TruncationPsiInput):
        middle = (psi.default + psi.minimum) / 2
        values = np.resize([psi.default, middle, psi.maximum, psi.minimum], count)
        rows[Role.TRUNCATION_PSI] = values.astype(np.float32)[:, None]
    return rows


def count_rows(rows: Arrays) -> int:
    """Return how many samples ``rows`` holds."""
    return len(next(iter(rows.values())))


def _split(rows: Arrays, size: int) -> list[Arrays]:
    return [
        {key: values[start : start + size] for key, values in rows.items()}
        for start in range(0, count_rows(rows), size)
    ]


def _join(parts: Sequence[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
