"""A generator whose networks run under torch function modes, which change what they call."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.export.graphs.onnx_export import (
    StageGraph,
    example_rows,
    network_of,
    run_operation,
)

MakeMode = Callable[[], TorchFunctionMode]


class Network(nn.Module):
    """One network of a generator, run under a mode that is made for every call."""

    def __init__(self, module: nn.Module, network: str, make_mode: MakeMode) -> None:
        super().__init__()
        self.module = module
        self.network = network
        self.make_mode = make_mode

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network gives."""
        with self.make_mode():
            return network_of(self.module, self.network)(*inputs)


class Intercepted(nn.Module):
    """A generator of the same networks, by their names."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network ``generator`` gives."""
        return self.get_submodule("generator")(*inputs)


def run_networks(
    module: nn.Module,
    spec: GeneratorSpec,
    rows: int,
    make_mode: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Tensor]:
    """Return what the networks and operations of a generator give for a few fixed inputs, by name.

    Args:
        module: The generator.
        spec: What it takes and gives.
        rows: How many samples.
        make_mode: Gives the mode under which a network runs.

    Raises:
        Exception: Whatever the forwards raise.
    """
    board, made = example_rows(spec, rows), dict[str, Tensor]()
    for stage in spec.pipeline:
        taken = [{**board, **made}[name] for name in stage.takes]
        if isinstance(stage, NetworkStage):
            with torch.no_grad(), make_mode(stage.network):
                outputs = StageGraph(module, spec, stage).network_outputs(*taken)
            made |= zip(stage.gives, outputs, strict=True)
        else:
            made |= run_operation(stage, taken)
    return made
