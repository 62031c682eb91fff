"""Tensors: whatever else a network gives, as it gives it: feature maps, latents, depth."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import Dimension, OutputKind, TensorType
from latentry.contract.kinds.vector import are_near

_MOST_NUMBERS = 2**26


class TensorOutput(OutputKind):
    """float32 of any shape, always raw.

    Attributes:
        shape: Shape of one sample's tensor.
    """

    kind: Literal["tensor"] = "tensor"
    shape: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=6)]

    @model_validator(mode="after")
    def _size_is_served(self) -> Self:
        if math.prod(self.shape) > _MOST_NUMBERS:
            raise ValueError(f"{list(self.shape)} are over {_MOST_NUMBERS} numbers")
        return self

    @property
    def network_shape(self) -> tuple[int | None, ...]:
        """``shape``."""
        return self.shape

    def tensors(self, image_format: Format) -> Mapping[str, TensorType]:
        """Return itself in every format."""
        return {self.name: TensorType(np.float32, self.shape)}

    def from_network(self, output: Any) -> dict[str, Any]:
        """Return it as it is."""
        return {self.name: output}

    def is_same_but_for_rounding(self, found: NDArray[Any], expected: NDArray[Any]) -> bool:
        """Whether floats are within 1e-4 of the largest value."""
        return are_near(found, expected)
