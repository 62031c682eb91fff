"""ONNX Runtime on the CPU."""

import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray


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
    """One ONNX Runtime session on the CPU; see :class:`latentry.serving.engines.Engine`."""

    def __init__(self, model: Path | bytes, *, threads: int = 0) -> None:
        """Load ``model`` (a file or its bytes); ``threads`` 0 means one for each core.

        Spinning is off: with several sessions on few cores, threads that spin take the cores
        from the session that has work (docs/performance.md has the figures).
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
        self.engine_class = engine_class()

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the named ``outputs``; raises ONNX Runtime's own errors."""
        results = self._session.run(list(outputs), dict(inputs))
        return dict(zip(outputs, results, strict=True))
