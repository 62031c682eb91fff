"""ONNX Runtime on the CPU."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from latentry.contract.wire import Arrays
from latentry.serving.entries.manifests import RowMode
from latentry.serving.runtime.engines.engine_class import class_of_version
from latentry.serving.runtime.engines.row_parts import joined, parts_of
from latentry.serving.runtime.engines.telemetry import silence

silence()
import onnxruntime  # noqa: E402

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeEngine:
    """A network on the CPU; see :class:`latentry.serving.runtime.engines.Engine`."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        precision: str = "fp32",
        threads: int = 0,
        rows: RowMode = "batch",
    ) -> None:
        """Load ``model`` (a file or its bytes); ``threads`` 0 means one for each core."""
        self.engine_class = class_of_version(onnxruntime.__version__, precision)
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
        names = list(outputs)
        parts = parts_of(inputs, self._threads, self._rows)
        drawn: list[Any] = [None] * len(parts)
        turns = iter(range(len(parts)))

        def work() -> None:
            for turn in turns:
                drawn[turn] = self._session.run(names, dict(parts[turn]))

        others = min(self._threads, len(parts)) - 1
        waiting = [self._pool.submit(work) for _ in range(others)]
        work()
        for future in waiting:
            future.result()
        return joined(names, drawn)
