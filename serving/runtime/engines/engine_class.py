"""Engine classes: the name of everything on which the last bit of an image may depend."""

import importlib.util
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


FAST_FLAGS = {
    "int8": frozenset(("avx512_vnni", "avx_vnni", "amx_int8")),
    "bf16": frozenset(("avx512_bf16", "amx_bf16")),
}
"""Instructions for products of such numbers, by precision: what makes them fast, and other bits."""


@cache
def cpu_flags() -> frozenset[str]:
    """Return what the processor can do, in the kernel's words; nothing where that is not known."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())


def vector_level() -> str:
    """Return the processor's vector level, by which ONNX Runtime picks its kernels."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    for level, flag in (("avx512", "avx512f"), ("avx2", "avx2")):
        if flag in cpu_flags():
            return level
    return "sse"


@cache
def engine_class(precision: str = "fp32") -> str:
    """Return the engine class of ONNX Runtime as this machine would load it, without loading it.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    return class_of_version(_installed_version(), precision)


def class_of_version(version: str, precision: str = "fp32") -> str:
    """Return the engine class of ONNX Runtime ``version`` on this machine."""
    return f"onnxruntime-{version}-{precision}-{level_of(precision)}"


def openvino_class(precision: str, version: str) -> str:
    """Return the engine class of OpenVINO ``version`` on this machine."""
    return f"openvino-{version.partition('-')[0]}-{precision}-{level_of(precision)}"


def installed_openvino() -> str | None:
    """Return the version of OpenVINO that is installed here, without loading it; None for none."""
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


def level_of(precision: str) -> str:
    """Return the instructions by which the bits of a network of this precision differ."""
    more = FAST_FLAGS.get(precision, frozenset())
    return "_".join([vector_level(), *sorted(more & cpu_flags())])


def _installed_version() -> str:
    # What the module itself says: several packages bring it, and two may be there at once.
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
    match = _VERSION.search(Path(found.origin).read_text())
    if match is None:
        raise ModuleNotFoundError("onnxruntime has no version", name="onnxruntime")
    return match[1]
