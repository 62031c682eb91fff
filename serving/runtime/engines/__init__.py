"""Engines run a network: arrays by name in, arrays by name out."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from latentry.contract.wire import Arrays

RowMode = Literal["batch", "single"]
"""How rows are computed: as many at a time as come, or each in a run of its own."""


class Engine(Protocol):
    """A loaded network.

    Attributes:
        engine_class: Names everything on which the last bit of an image may depend: the engine,
            its version, the precision and, on a CPU, the vector level.
    """

    engine_class: str

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the named ``outputs`` for ``inputs``, all with the same first dimension."""
        ...
