"""The filter ``constant``: one colour all over."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from latentry.synthesis.filters.judging import Candidates, Filter, JudgeOptions


class ConstantOptions(JudgeOptions):
    """Reject images whose brightest and darkest values are within ``tolerance`` in each channel."""

    kind: Literal["constant"]
    tolerance: Annotated[int, Field(ge=0, le=254)] = 0

    def load(self) -> Filter:
        """Return the filter."""
        return _Constant(self)


class _Constant:
    def __init__(self, options: ConstantOptions) -> None:
        self._tolerance = options.tolerance

    def judge(self, candidates: Candidates) -> list[str | None]:
        spread = candidates.images.max((1, 2)).astype(np.int64) - candidates.images.min((1, 2))
        return [
            "constant" if constant else None for constant in (spread <= self._tolerance).all(axis=1)
        ]
