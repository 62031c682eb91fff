"""Cutting a batch into what is computed apart, and joining it again: the same for every engine.

Each row is computed by one thread alone. Threads that share an operator, which is the libraries'
own way, change the last bits of a sample with their number and with the batch (ONNX Runtime 1.31
from three threads on, OpenVINO 2026.4 in FP32 from two), so a seed would not keep its image; and
they are slower, since they wait for each other at every operator (docs/performance.md).

Some operators (means over channels, sin, log, softplus, ...) round the same row otherwise beside
other rows. With ``rows`` "single" each row is a run of its own, so that its sample cannot depend on
the batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import RowMode


def parts_of(inputs: Arrays, threads: int, rows: RowMode) -> list[Arrays]:
    """Return a batch cut into as many parts as there are threads, or into rows where that is said.

    Args:
        inputs: Arrays by name, all with the same first dimension.
        threads: How many there are.
        rows: How rows are computed.
    """
    count = len(next(iter(inputs.values())))
    parts = count if rows == "single" else min(threads, count)
    if parts <= 1:
        return [inputs]
    cuts = [count * index // parts for index in range(parts + 1)]
    return [
        {name: array[start:stop] for name, array in inputs.items()}
        for start, stop in pairwise(cuts)
    ]


def joined(
    names: Sequence[str], drawn: Sequence[Sequence[NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return the outputs ``names`` of the whole batch, out of those of its parts."""
    if len(drawn) == 1:
        return dict(zip(names, drawn[0], strict=True))
    return {name: np.concatenate(pieces) for name, *pieces in zip(names, *drawn, strict=True)}
