"""ONNX Runtime on the CPU."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# Before the import: from 1.29 on it would begin there to write down what it is used for, to send it
# to its maker (docs/operations.md). What this process starts inherits it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
from numpy.typing import NDArray

from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import RowMode
from latentry.serving.runtime.engines.engine_class import class_of_version

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeEngine:
    """A network on the CPU; see :class:`latentry.serving.runtime.engines.Engine`.

    Every row is computed by one thread alone, and the rows of a batch are shared out among the
    threads. Threads that share an operator, which is ONNX Runtime's own way, change the last bits
    of a sample with their number and with the batch from three threads on (measured with 1.31),
    so a seed would not keep its image; and they are slower, since they wait for each other at
    every operator (docs/performance.md).

    Some operators (means over channels, sin, log, softplus, ...) round the same row otherwise
    beside other rows. With ``rows`` "single" each row is a run of its own, so that its sample
    cannot depend on the batch.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0, rows: RowMode = "batch") -> None:
        """Load ``model`` (a file or its bytes); ``threads`` 0 means one for each core."""
        self.engine_class = class_of_version(onnxruntime.__version__)
        self._rows = rows
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The weights of a network given as bytes are in them: it may name no other file, not even
        # one of the current folder, which is where ONNX Runtime would look.
        options.add_session_config_entry(_FOLDER_OF_WEIGHTS, os.devnull)
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )

    @property
    def inputs(self) -> dict[str, list[int | str | None]]:
        """The shape of each input, by name; free dimensions have a name or None."""
        return {item.name: item.shape for item in self._session.get_inputs()}

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [item.name for item in self._session.get_outputs()]

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the named ``outputs``; raises ONNX Runtime's own errors."""
        names, feed = list(outputs), dict(inputs)
        rows = len(next(iter(feed.values())))
        parts = min(self._threads, rows)
        if rows <= 1 or (parts == 1 and self._rows == "batch"):
            return dict(zip(names, self._session.run(names, feed), strict=True))
        share = self._run_rows if self._rows == "single" else self._run_parts
        drawn = share(names, feed, rows, parts)
        return {name: np.concatenate(pieces) for name, *pieces in zip(names, *drawn, strict=True)}

    def _run_parts(
        self, names: list[str], feed: dict[str, NDArray[Any]], rows: int, parts: int
    ) -> list[Any]:
        """Give every thread as many rows; return the outputs of each."""
        cuts = [rows * index // parts for index in range(parts + 1)]
        first, *others = (
            {name: array[start:stop] for name, array in feed.items()}
            for start, stop in pairwise(cuts)
        )
        waiting = [self._pool.submit(self._session.run, names, part) for part in others]
        return [self._session.run(names, first), *(future.result() for future in waiting)]

    def _run_rows(
        self, names: list[str], feed: dict[str, NDArray[Any]], rows: int, parts: int
    ) -> list[Any]:
        """Give a row to each thread that has none, until none is left; return their outputs."""
        drawn: list[Any] = [None] * rows
        turns = iter(range(rows))

        def work() -> None:
            for row in turns:
                one = {name: array[row : row + 1] for name, array in feed.items()}
                drawn[row] = self._session.run(names, one)

        waiting = [self._pool.submit(work) for _ in range(parts - 1)]
        work()
        for future in waiting:
            future.result()
        return drawn
