"""Engine classes: the name of everything on which the last bit of an image may depend."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


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
    """Return the engine class of this machine, without loading an engine."""
    return f"onnxruntime-{_version()}-fp32-{vector_level()}"


def _version() -> str:
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
