"""What every stage has: names that it takes from the board of tensors, and names that it gives."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from latentry.contract.kinds.kind import TensorName
from latentry.contract.strict import Strict

_NETWORK = re.compile(r"[a-z][a-z0-9_]{0,31}")

Takes = Annotated[tuple[TensorName, ...], Field(min_length=1)]
Gives = Annotated[tuple[TensorName, ...], Field(min_length=1)]


def _checked_network(name: str) -> str:
    if not _NETWORK.fullmatch(name):
        raise ValueError(f"network {name!r} is no name of a network: a-z, 0-9 and _, at most 32")
    return name


class NetworkStage(Strict):
    """A network: an attribute of the module, or its forward, called ``generator``.

    Attributes:
        network: Name of the attribute, and of the ONNX file.
        takes: Names of the tensors that it is called with, in order.
        gives: Names of what it returns: one tensor, or a tuple in this order.
    """

    network: Annotated[str, AfterValidator(_checked_network)]
    takes: Takes
    gives: Gives


class OperationStage(Strict):
    """A computation between networks, element by element, in NumPy.

    What needs a matrix product rounds differently by batch, and is a network instead.

    Attributes:
        operation: Names the operation.
        takes: Names of the tensors that it takes, in the operation's own order.
        gives: Names of what it gives.
    """

    operation: str
    takes: Takes
    gives: Gives

    def check_taken(self, shapes: Sequence[tuple[int, ...] | None]) -> None:
        """Check the shapes of a sample's rows of what it takes; None where no input says it.

        Raises:
            ValueError: It cannot be computed of these.
        """

    def run(self, *tensors: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return what it gives for the tensors [N, ...] that it takes, in order."""
        raise NotImplementedError


Stage = NetworkStage | OperationStage
