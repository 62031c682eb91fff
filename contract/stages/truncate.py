"""StyleGAN's truncation of w."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, model_validator

from latentry.contract.stages.stage import OperationStage

_TAKES = (2, 3)  # w, truncation_psi and, maybe, truncation_cutoff


class TruncateStage(OperationStage):
    """w [N, num_ws, w_dim] moved towards w_avg [w_dim] by psi [N, 1]; 1 is off, 0 the average.

    ``w_avg + psi * (w - w_avg)`` (StyleGAN, Karras et al. 2019, section B). With a third input, the
    cutoff [N, 1], only the first so many of num_ws move (``truncation_cutoff`` of NVlabs'
    StyleGAN2-ADA).

    Attributes:
        w_avg: The average of w, [w_dim]; left out, an export takes the module's own, or refuses.
    """

    operation: Literal["truncate"] = "truncate"
    w_avg: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _takes_what_it_must(self) -> Self:
        if len(self.takes) not in _TAKES or len(self.gives) != 1:
            raise ValueError(
                "truncate takes w, psi and, maybe, a cutoff, and gives one tensor, such as "
                'takes ["w", "truncation_psi"], gives ["w_truncated"]'
            )
        return self

    def check_taken(self, shapes: Sequence[tuple[int, ...] | None]) -> None:
        """Check that w is [num_ws, w_dim], as wide as w_avg, and that the others are numbers."""
        w, *numbers = shapes
        if w is not None and len(w) != 2:
            raise ValueError(
                f"truncate takes w of [num_ws, w_dim]; {self.takes[0]} has shape {list(w)}"
            )
        if w is not None and self.w_avg is not None and len(self.w_avg) != w[1]:
            raise ValueError(f"w_avg has {len(self.w_avg)} numbers, w_dim is {w[1]}")
        for name, shape in zip(self.takes[1:], numbers, strict=True):
            if shape is not None and shape != (1,):
                raise ValueError(f"truncate takes {name} as one number; it has shape {list(shape)}")

    def run(self, *tensors: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return w truncated."""
        w, psi, *cutoff = tensors
        moved = truncate(w, np.array(self.w_avg, np.float32), psi)
        if cutoff:
            layers = np.arange(w.shape[1])[None, :, None]
            moved = np.where(layers < cutoff[0][:, :, None], moved, w)
        return (moved,)


def truncate(
    w: NDArray[np.float32], w_avg: NDArray[np.float32], psi: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return w moved towards w_avg.

    It is computed from the nearer end, so that psi 1 gives w and psi 0 gives w_avg to the bit.
    """
    weight = psi[:, :, None]
    away = w - w_avg
    return np.where(weight < 0.5, w_avg + weight * away, w - (1 - weight) * away)
