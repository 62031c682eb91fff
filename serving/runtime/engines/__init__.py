"""Engines run a network: arrays by name in, arrays by name out. Providers make and load them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from latentry.contract.errors import ServeError
from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import Build

Feeds = Callable[[int], Arrays]
"""Gives so many rows of a network's inputs, by their names in its graph, as samples make them."""


class EngineMissing(ServeError):
    """This machine lacks an engine, or the instructions that it needs; the message says which."""


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


class EngineProvider(Protocol):
    """One engine, as builds name it; see docs/builds.md for adding one."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """In what numbers it can run a network."""
        ...

    def expect(self, precision: str) -> str:
        """Return the engine class that a network has here once it is loaded, without loading one.

        Raises:
            EngineMissing: It cannot be loaded here.
        """
        ...

    def make(self, network: bytes, precision: str, feeds: Feeds) -> bytes:
        """Return what is to be loaded for an FP32 network.

        Args:
            network: An ONNX file without other files.
            precision: In what numbers it is to run.
            feeds: What the network is fed with, for an engine that has to see ranges of numbers.
        """
        ...

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        """Load what :meth:`make` made; ``threads`` 0 means one for each core.

        Every row of a batch is to come out as it does alone, in every place and whatever is beside
        it; where ``build.rows`` is "single", each is to be a run of its own.
        """
        ...
