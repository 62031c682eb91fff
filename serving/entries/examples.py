"""Example requests: for goldens, for warming up, and for perf_analyzer."""

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.kinds.kind import TensorType
from latentry.contract.spec import GeneratorSpec

PERF_INPUT_FILE = "perf_input.json"

_PERF_ROWS = 64
_MOST_PERF_BYTES = 8 * 2**20
_MOST_NUMBERS = 16


def example_tensors(spec: GeneratorSpec) -> dict[str, TensorType]:
    """Return what the tensors of an example request are, by name; nothing is made."""
    route = spec.route(frozenset())
    seed = {"seed": TensorType(np.int64, (1,))} if route.drawn else {}
    given = [item for item in route.inputs if item not in route.drawn]
    return seed | {item.name: TensorType(item.dtype, item.example_row_shape) for item in given}


def example_request(spec: GeneratorSpec, count: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of one request for ``count`` samples: seeds from 0, every input varied."""
    request: dict[str, NDArray[Any]] = {}
    for name in example_tensors(spec):
        item = spec.find(name)
        request[name] = item.examples(count) if item else np.arange(count, dtype=np.int64)[:, None]
    return request


def perf_input(spec: GeneratorSpec) -> bytes:
    """Return the ``--input-data`` file for perf_analyzer, whose random defaults are all invalid.

    Every row carries every input, so that all requests have the same tensors and batch together;
    numbers stand at their defaults.
    """
    size = sum(array.nbytes for array in example_request(spec, 1).values())
    count = max(1, min(_PERF_ROWS, _MOST_PERF_BYTES // size))
    request = example_request(spec, count)
    for item in spec.inputs:
        if item.name in request and (row := item.default_row()) is not None:
            request[item.name] = np.repeat(row[None], count, axis=0)
    free = {item.name for item in spec.free_inputs}
    rows = [
        {name: _content(array[i], has_shape=name in free) for name, array in request.items()}
        for i in range(count)
    ]
    return json.dumps({"data": rows}, indent=1).encode()


def _content(row: NDArray[Any], *, has_shape: bool) -> list[Any] | dict[str, Any]:
    if row.size <= _MOST_NUMBERS:
        # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
        return [float(str(v)) if row.dtype.kind == "f" else int(v) for v in row.flat]
    shape = {"shape": list(row.shape)} if has_shape else {}
    return shape | {"b64": base64.b64encode(np.ascontiguousarray(row).tobytes()).decode()}
