"""OpenVINO on the CPU."""

import os
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import RowMode
from latentry.serving.runtime.engines.engine_class import openvino_class
from latentry.serving.runtime.engines.row_parts import joined, parts_of
from latentry.serving.runtime.engines.telemetry import silence

silence()
import openvino  # noqa: E402

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """A network on the CPU; see :class:`latentry.serving.runtime.engines.Engine`.

    One call runs at a time, and OpenVINO's own threads compute its parts: with several of Python's
    threads 2026.4.1 hung (two in a request, one that made a request) once in some hundred runs.
    """

    def __init__(
        self, model: bytes, precision: str, *, threads: int = 0, rows: RowMode = "batch"
    ) -> None:
        """Load a network.

        Args:
            model: An ONNX file; for ``int8`` one whose operators stand between quantised numbers.
            precision: ``fp32``, ``bf16`` or ``int8``; what is not quantised there is float32.
            threads: How many parts of a batch are computed at a time; 0 means one for each core.
            rows: How rows are computed.
        """
        self.engine_class = openvino_class(precision, openvino.__version__)
        self._rows = rows
        streams = threads or len(os.sched_getaffinity(0))
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                # A stream runs one request at a time, and has one thread.
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams,
                "ENABLE_CPU_PINNING": False,  # all processes of a server would take the same core
            },
        )
        self._running = Lock()
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the named ``outputs``; raises OpenVINO's own errors."""
        names = list(outputs)
        parts = parts_of(inputs, len(self._requests), self._rows)
        drawn: list[list[NDArray[Any]]] = []
        with self._running:
            for start in range(0, len(parts), len(self._requests)):
                drawn += self._run_parts(names, parts[start : start + len(self._requests)])
        return joined(names, drawn)

    def _run_parts(self, names: list[str], parts: Sequence[Arrays]) -> list[list[NDArray[Any]]]:
        """Run as many parts as there are requests at most; return the outputs of each."""
        running = []
        try:
            for request, part in zip(self._requests, parts, strict=False):
                request.start_async({name: np.ascontiguousarray(a) for name, a in part.items()})
                running.append(request)
            for request in running:
                request.wait()
            # Copies: the next run of a request writes over them.
            return [[request.get_tensor(n).data.copy() for n in names] for request in running]
        except Exception:
            for request in running:  # one that is not waited for stays busy for ever
                with suppress(Exception):
                    request.wait()
            raise
