"""ONNX Runtime on the CPU."""

import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


@cache
def vector_level() -> str:
    """Return the processor's vector level, by which ONNX Runtime picks its kernels."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    for level, flag in (("avx512", "avx512f"), ("avx2", "avx2")):
        if flag in flags:
            return level
    return "sse"


def engine_class() -> str:
    """Return the engine class of this machine."""
    return f"onnxruntime-{onnxruntime.__version__}-fp32-{vector_level()}"


class OnnxRuntimeEngine:
    """A network on the CPU; see :class:`latentry.serving.engines.Engine`.

    A batch with at least as many rows as threads is cut into one part for each thread, and each
    part is drawn by one thread alone: threads that share every operator of one batch wait for each
    other at each of them (docs/performance.md has the figures). Smaller batches are drawn by all
    threads together. Both give the same bits; the export proves it.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0) -> None:
        """Load ``model`` (a file or its bytes); ``threads`` 0 means one for each core."""
        self._threads = threads or len(os.sched_getaffinity(0))
        self._alone = _session(model, 1)
        self._together = _session(model, self._threads) if self._threads > 1 else self._alone
        self._pool = ThreadPoolExecutor(max(1, self._threads - 1))
        self.engine_class = engine_class()

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return the named ``outputs``; raises ONNX Runtime's own errors."""
        names, feed = list(outputs), dict(inputs)
        rows = len(next(iter(feed.values())))
        if self._threads == 1 or rows < self._threads:
            return dict(zip(names, self._together.run(names, feed), strict=True))
        cuts = np.linspace(0, rows, self._threads + 1).astype(int).tolist()
        parts = [
            {name: array[start:stop] for name, array in feed.items()}
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ]
        others = [self._pool.submit(self._alone.run, names, part) for part in parts[1:]]
        drawn = [self._alone.run(names, parts[0]), *(other.result() for other in others)]
        return {name: np.concatenate(pieces) for name, *pieces in zip(names, *drawn, strict=True)}


def _session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the process that has work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
