"""The proof bench: ONNX Runtime and torch, fed with the same rows in batches of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.contract.kinds.kind import shown_shape
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.contract.wire import Arrays
from latentry.export.graphs.onnx_export import FROZEN_BATCH_CAUSES, StageGraph
from latentry.serving.entries.manifests import RowMode
from latentry.serving.runtime.engines import Engine
from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.serving.runtime.stage_runner import tensor_for_stage


@dataclass(frozen=True)
class EngineBench:
    """An engine, fed with rows: arrays by input, one row a sample.

    Attributes:
        spec: What the generator takes and gives.
        engines: What runs each of its networks, by its name.
    """

    spec: GeneratorSpec
    engines: Mapping[str, Engine]

    def run_onnx(self, rows: Arrays, size: int) -> Arrays:
        """Return everything that the stages give for ``rows``, drawn ``size`` at a time.

        Raises:
            ExportRefused: A graph does not run on such a batch, or gives another number of rows
                or other shapes than it must.
        """
        parts = []
        for part in _split(rows, size):
            made: dict[str, NDArray[Any]] = {}
            for stage in self.spec.pipeline:
                if isinstance(stage, NetworkStage):
                    made |= self._run_graph(stage, {**part, **made})
                else:
                    board = {**part, **made}
                    taken = (tensor_for_stage(board, name) for name in stage.takes)
                    made |= zip(stage.gives, stage.run(*taken), strict=True)
            parts.append(made)
        return _join(parts)

    def feed(self, stage: NetworkStage, board: Arrays) -> Arrays:
        """Return the inputs of a network's graph, by their names there, out of all tensors."""
        return {
            graph: tensor_for_stage(board, name)
            for name, graph in self.spec.graph_inputs(stage).items()
        }

    def _run_graph(self, stage: NetworkStage, board: Arrays) -> Arrays:
        feed = self.feed(stage, board)
        count = count_rows(feed)
        expected = self.spec.graph_outputs(stage)
        engine = self.engines[stage.network]
        try:
            outputs = engine.run(feed, list(expected))
        except Exception as error:  # engines' errors share no base
            raise ExportRefused(
                f"{called(engine)} does not run {stage.network} on a batch of {count}: {error}\n"
                f"where another size works, {FROZEN_BATCH_CAUSES}"
            ) from error
        for name, kind in expected.items():
            array = outputs.get(name)
            dtype = np.dtype(kind.dtype if kind else np.float32)
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                found = getattr(array, "dtype", type(array).__name__)
                raise ExportRefused(
                    f"{called(engine)} gives {name} of {stage.network} as {found}; it must be an "
                    f"array of {dtype}"
                )
            if array.shape[:1] != (count,):
                raise ExportRefused(
                    f"{stage.network} gives {name} of shape {list(array.shape)} for a batch of "
                    f"{count}, not {count} rows: {FROZEN_BATCH_CAUSES}"
                )
            if kind is not None and not kind.fits(array.shape[1:]):
                raise ExportRefused(
                    f"{stage.network} gives {name} with rows of shape {list(array.shape[1:])}; the "
                    f"spec says {shown_shape(kind.row_shape)}; correct the spec or the module"
                )
        return outputs


@dataclass(frozen=True)
class ProofBench(EngineBench):
    """ONNX Runtime and torch, fed with the same rows.

    Attributes:
        module: The generator in PyTorch, on the CPU in evaluation mode.
    """

    module: nn.Module

    def run_torch(self, rows: Arrays, served: Arrays, size: int) -> Arrays:
        """Return what the module itself gives for ``rows``, as the networks' graphs would.

        So that each network is compared for itself, it gets of other stages what ONNX Runtime made
        in ``served``.

        Raises:
            ExportRefused: The module raised an error.
        """
        parts = []
        for part, made in zip(_split(rows, size), _split(served, size), strict=True):
            outputs: dict[str, NDArray[Any]] = {}
            before: dict[str, NDArray[Any]] = {}
            for stage in self.spec.pipeline:
                if isinstance(stage, NetworkStage):
                    outputs |= self._run_module(stage, {**part, **before})
                before |= {name: tensor_for_stage(made, name) for name in stage.gives}
            parts.append(outputs)
        return _join(parts)

    def _run_module(self, stage: NetworkStage, board: Arrays) -> Arrays:
        graph = StageGraph(self.module, self.spec, stage)
        rows = [torch.from_numpy(board[name]) for name in stage.takes]
        try:
            with torch.no_grad():
                tensors = graph(*rows)
        except Exception as error:  # a user's forward may raise anything
            raise ExportRefused(
                f"{graph.name} fails in torch on a batch of {len(rows[0])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        names = self.spec.graph_outputs(stage)
        return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def called(engine: Engine) -> str:
    """Return how messages call an engine."""
    ours = engine.engine_class.startswith("onnxruntime-")
    return "ONNX Runtime" if ours else engine.engine_class


def load_engines(
    spec: GeneratorSpec,
    artefacts: Mapping[str, bytes],
    *,
    threads: int = 0,
    rows: RowMode = "batch",
) -> dict[str, Engine]:
    """Return the engines of ``artefacts`` (file name to ONNX bytes) by network.

    ``threads`` 0 means one for each core.

    Raises:
        ExportRefused: ONNX Runtime does not load one of them.
    """
    engines: dict[str, Engine] = {}
    for network in spec.networks:
        try:
            data = artefacts[f"{network}.onnx"]
            engines[network] = OnnxRuntimeEngine(data, threads=threads, rows=rows)
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            raise ExportRefused(f"ONNX Runtime cannot load {network}.onnx: {error}") from error
    return engines


def draw_rows(spec: GeneratorSpec, count: int, *, first_seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return rows of every input: latents of ``count`` seeds, others over their ranges."""
    route = spec.route(frozenset())
    return {
        item.name: LatentDrawer(item).draw(range(first_seed, first_seed + count))
        if isinstance(item, LatentInput) and item in route.drawn
        else item.examples(count)
        for item in route.inputs
    }


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
