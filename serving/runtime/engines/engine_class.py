"""Engine classes: the name of everything on which the last bit of an image may depend."""

import importlib.util
import platform
import re
from functools import cache
from pathlib import Path

_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


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


@cache
def engine_class() -> str:
    """Return the engine class of what this machine would load, without loading it.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    return class_of_version(_installed_version())


def class_of_version(version: str) -> str:
    """Return the engine class of ONNX Runtime ``version`` on this machine."""
    return f"onnxruntime-{version}-fp32-{vector_level()}"


def _installed_version() -> str:
    # What the module itself says: several packages bring it, and two may be there at once.
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    match = _VERSION.search(Path(found.origin).read_text())
    if match is None:
        raise ModuleNotFoundError("onnxruntime has no version", name="onnxruntime")
    return match[1]
