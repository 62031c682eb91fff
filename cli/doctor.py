"""``latentry doctor``: look at this machine, say what is missing for serving, and what to do."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from latentry.cli.common.console import AsJson
from latentry.cli.common.exit_codes import EXIT_FAULT
from latentry.cli.common.repository_options import print_json
from latentry.contract.errors import LatentryError, ServeError
from latentry.profiling.perf_analyzer.fetch import fetch_perf_analyzer
from latentry.profiling.perf_analyzer.program import INSTALL_COMMAND, find_perf_analyzer
from latentry.serving.runtime.engines.engine_class import FAST_FLAGS, cpu_flags, vector_level
from latentry.serving.triton.tritonserver import find_tritonserver

Status = Literal["ok", "warning", "error"]

_SERVED_PYTHONS = ((3, 11), (3, 12))
_ENGINES = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}
_SHM_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: ``error`` keeps Latentry from serving, ``warning`` from something else.
        found: What is there.
        advice: What to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Return every finding."""
    checks = (
        _python, _numpy, _libpython, _glibc, _engine, _processor, _tritonserver, _perf_analyzer,
        _shared_memory, _private_folder, _gpu,
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    found = platform.python_version()
    if sys.version_info[:2] in _SERVED_PYTHONS:
        yield Finding("python", "ok", found)
    else:
        advice = "the client works; to serve from the nvidia-pytriton wheel use Python 3.11 or 3.12"
        yield Finding("python", "warning", found, advice)


def _numpy() -> Iterator[Finding]:
    found = importlib.metadata.version("numpy")
    if int(found.partition(".")[0]) < 2 or not _has("pytriton"):
        yield Finding("numpy", "ok", found)
    else:
        advice = (
            "Triton 2.51's Python backend gets wrong values from numpy 2, without an error; "
            'pip install "numpy<2"'
        )
        yield Finding("numpy", "error", found, advice)


def _libpython() -> Iterator[Finding]:
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"), Path("/usr/lib")]
    folders.append(Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""))
    path = next((folder / name for folder in folders if (folder / name).exists()), None)
    if path:
        yield Finding("libpython", "ok", str(path))
    else:
        advice = (
            f"Triton's stub loads {name}: install it (Debian: "
            f"libpython3.{sys.version_info.minor}), or a Python built with --enable-shared"
        )
        yield Finding("libpython", "error", "not found", advice)


def _glibc() -> Iterator[Finding]:
    name, found = platform.libc_ver()
    if name != "glibc":
        yield Finding("glibc", "warning", name or "unknown", "serving needs Linux with glibc")
    elif tuple(map(int, found.split("."))) < (2, 28):
        yield Finding("glibc", "error", found, "the wheel's Triton needs glibc 2.28 or later")
    else:
        yield Finding("glibc", "ok", found)


def _engine() -> Iterator[Finding]:
    present = {extra: _version(package) for extra, package in _ENGINES.items()}
    there = {extra: found for extra, found in present.items() if found}
    if len(there) == 2:
        advice = (
            "onnxruntime and onnxruntime-gpu overwrite each other: pip uninstall both, then "
            'install one: pip install "latentry[cpu]" or "latentry[gpu]"'
        )
        yield Finding("engine", "error", "onnxruntime and onnxruntime-gpu", advice)
    elif not there:
        yield Finding("engine", "error", "none", 'pip install "latentry[cpu]"')
    else:
        extra, found = there.popitem()
        yield Finding("engine", "ok", f"{_ENGINES[extra]} {found}")
    if version := _version("openvino"):
        yield Finding("engine", "ok", f"openvino {version}")


def _processor() -> Iterator[Finding]:
    """Tell which numbers the processor has instructions for: what makes builds in them fast."""
    there = {word: sorted(flags & cpu_flags()) for word, flags in FAST_FLAGS.items()}
    told = (f"{word} by {', '.join(flags) or 'none'}" for word, flags in there.items())
    yield Finding("processor", "ok", f"{vector_level()}; {'; '.join(told)}")


def _tritonserver() -> Iterator[Finding]:
    try:
        installation = find_tritonserver()
    except ServeError as error:
        yield Finding("tritonserver", "error", "none", str(error))
        return
    if installation.wheel is None:
        yield Finding("tritonserver", "ok", str(installation.binary))
    else:
        found = f"2.51 of nvidia-pytriton {_version('nvidia-pytriton')}, CPU, for loopback only"
        yield Finding("tritonserver", "ok", found)


def _perf_analyzer() -> Iterator[Finding]:
    placeholder = _version("perf-analyzer") == "0.1.0"
    if found := find_perf_analyzer():
        try:
            text = f"{found.version()}, {found.program}"
        except (LatentryError, OSError) as error:
            advice = f"remove {found.program}; {INSTALL_COMMAND}"
            yield Finding("perf_analyzer", "warning", f"does not run: {error}", advice)
            return
        if placeholder:
            text += "; pip's placeholder package 0.1.0 is passed over"
        yield Finding("perf_analyzer", "ok", text)
    elif placeholder:
        text = "the placeholder package 0.1.0, which does nothing"
        advice = f"pip uninstall perf-analyzer; {INSTALL_COMMAND}"
        yield Finding("perf_analyzer", "warning", text, advice)
    else:
        yield Finding("perf_analyzer", "warning", "none (only profiling needs it)", INSTALL_COMMAND)


def _shared_memory() -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        yield Finding("shared memory", "error", "no writable /dev/shm", "mount a tmpfs there")
        return
    free = shutil.disk_usage(shm).free
    if free < _SHM_BYTES:
        advice = "give a container more, such as docker run --shm-size=1g"
        yield Finding("shared memory", "warning", f"{free / 2**20:.0f} MiB free", advice)
    else:
        yield Finding("shared memory", "ok", f"{free / 2**20:.0f} MiB free")


def _private_folder() -> Iterator[Finding]:
    try:
        from latentry.serving.server.folder import check_starts_programs

        if find_tritonserver().wheel is not None:
            yield Finding("private folder", "ok", str(check_starts_programs()))
    except ImportError:
        return  # an extra is missing, which is said elsewhere
    except (ServeError, OSError) as error:
        yield Finding(
            "private folder", "error", str(error), "set XDG_RUNTIME_DIR to another folder"
        )


def _gpu() -> Iterator[Finding]:
    if Path("/dev/nvidiactl").exists():
        yield Finding("gpu", "ok", "an NVIDIA driver is loaded")
    else:
        yield Finding("gpu", "ok", "none; ONNX Runtime serves on the CPU")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def doctor(
    install: Annotated[
        Literal["perf-analyzer"] | None,
        typer.Option(help="Fetch this into the user's cache: perf-analyzer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and say what is missing for serving, and what to do.

    latentry doctor

    latentry doctor --install perf-analyzer
    """
    if install:
        _install_perf_analyzer()
        return
    findings = examine()
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(EXIT_FAULT)


def _print_findings(findings: list[Finding]) -> None:
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    names = max(len(finding.name) for finding in findings)
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        status = (f"{finding.status:<8}", colours[finding.status])
        console.print(Text.assemble(status, f"{finding.name:<{names}}  {finding.found}"))
        if finding.advice:
            console.print(Text(" " * (names + 10) + finding.advice, style="dim"))


def _install_perf_analyzer() -> None:
    found = find_perf_analyzer() or fetch_perf_analyzer()
    line = Text(f"perf_analyzer {found.version()}: {found.program}")
    Console(stderr=True, soft_wrap=True).print(line)
