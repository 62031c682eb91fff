"""Runs stages over a board of named tensors: networks by their engines, operations in NumPy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.spec import WATCH, GeneratorSpec, Route
from latentry.contract.stages.stage import NetworkStage, Stage
from latentry.serving.runtime.engines import Engine

Board = dict[str, NDArray[Any]]


def tensor_for_stage(board: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """Return what a stage takes from the board: of a picture that a network made, its floats."""
    return board[f"{name}.sample"] if f"{name}.sample" in board else board[name]


class StageRunner:
    """The stages of one generator with their engines.

    Attributes:
        spec: What the generator takes and gives.
        engines: By network.
    """

    def __init__(self, spec: GeneratorSpec, engines: Mapping[str, Engine]) -> None:
        self.spec = spec
        self.engines = engines
        self._graphs = {
            stage.network: (
                spec.graph_inputs(stage),
                list(graph := spec.graph_outputs(stage)),
                [name for name in graph if name.removesuffix(".sample") in {name, *later}],
            )
            for index, stage in enumerate(spec.pipeline)
            if isinstance(stage, NetworkStage)
            for later in [[name for other in spec.pipeline[index + 1 :] for name in other.takes]]
        }

    def run(
        self, route: Route, board: Board, *, with_samples: bool = False
    ) -> tuple[Board, NDArray[np.float32]]:
        """Return what the stages of ``route`` give, and their watch [N]: finite where a sample is.

        Args:
            route: Which stages run.
            board: Rows [N, ...] of the inputs that reach them, by name; what is made joins it.
            with_samples: Whether the networks' own floats (``X.sample``) are wanted.
        """
        made: Board = {}
        watches: list[NDArray[np.float32]] = []
        for stage in route.stages:
            results = self._run_stage(stage, {**board, **made}, with_samples)
            if WATCH in results:
                watches.append(results.pop(WATCH))
            made |= results
        # The largest: sums of finite numbers may overflow, and NaN wins here, too.
        return made, watches[0] if len(watches) == 1 else np.maximum.reduce(np.abs(watches))

    def _run_stage(self, stage: Stage, board: Board, with_samples: bool) -> Board:
        if not isinstance(stage, NetworkStage):
            results = stage.run(*(tensor_for_stage(board, name) for name in stage.takes))
            return dict(zip(stage.gives, results, strict=True))
        inputs, everything, raw = self._graphs[stage.network]
        feed = {inputs[name]: tensor_for_stage(board, name) for name in stage.takes}
        return self.engines[stage.network].run(feed, everything if with_samples else raw)
