"""Fetch ``perf_analyzer`` where there is none.

``pip install perf-analyzer`` gives an empty 0.1.0 where glibc is older than 2.38. The program of
2.51 lies inside the tritonclient 2.51.0 wheel; it needs libcudart (a wheel, used without a GPU) and
Debian's libb64. They are unpacked into a folder of this user's cache; nothing is installed, and
nothing is unpacked whose SHA-256 is not one of those below.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from latentry.contract.errors import NotFound, ServerFault
from latentry.contract.files import sha256_regular
from latentry.profiling.perf_analyzer.program import (
    FETCHED_VERSION,
    PROGRAM,
    PerfAnalyzer,
    fetched_folder,
    with_libraries,
)

_WHEELS = {
    f"tritonclient=={FETCHED_VERSION}": (
        "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52"
    ),
    "nvidia-cuda-runtime-cu12==12.9.79": (
        "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3"
    ),
}
_DEBIAN_PACKAGE = "libb64-0d"
_DEBIAN_DIGESTS = {
    "b0e1d6fde8bdccc18c3884144aede064dc82464dd4777275fa80e74c05583e82",  # Debian 12, 1.2-5+b1
    "2eef02f6402a649d692181afe0eb26fce7b00b64092348284f7018420f8fbcde",  # Debian 13, 1.2-5+b3
}
_FAILURES = (subprocess.CalledProcessError, ServerFault, OSError, StopIteration, ValueError)
_FILES = ("**/libcudart.so.12", "**/libb64.so.0d", f"**/data/bin/{PROGRAM}")


def fetch_perf_analyzer() -> PerfAnalyzer:
    """Put the program and its two libraries into this user's cache, all of them or none.

    Raises:
        NotFound: pip or apt did not deliver, or delivered something else, or it does not run here.
    """
    target = fetched_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, so that the folder appears whole.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        try:
            _download(Path(name))
            _check(Path(name))
            _unpack(Path(name))
            for pattern in _FILES:
                found = next(Path(name).glob(pattern))
                shutil.copy(found, whole / found.name)
            (whole / PROGRAM).chmod(0o755)
            with_libraries(whole / PROGRAM).version()
        except _FAILURES as error:
            raise NotFound(
                f"perf_analyzer {FETCHED_VERSION} cannot be fetched: {_reason(error)}. It needs "
                "pip, and libb64-0d of Debian 12 or 13 (x86-64) by apt-get; or put the vendor's "
                "perf_analyzer on the PATH"
            ) from error
        with suppress(OSError):  # another process was first
            whole.rename(target)
    return with_libraries(target / PROGRAM)


def _download(folder: Path) -> None:
    # Of a source distribution pip would run code before anything is checked.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "--dest", str(folder), *_WHEELS], folder)
    download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", _DEBIAN_PACKAGE]
    try:
        _run(download, folder)
    except subprocess.CalledProcessError:
        _run(["apt-get", "update", "-qq"], folder)
        _run(download, folder)


def _check(folder: Path) -> None:
    """Raise ValueError where a package is none of those that are known."""
    for pattern, known in (("*.whl", set(_WHEELS.values())), ("*.deb", _DEBIAN_DIGESTS)):
        for package in sorted(folder.glob(pattern)):
            if (digest := sha256_regular(package)) not in known:
                raise ValueError(f"{package.name} is not what is known; its SHA-256 is {digest}")


def _unpack(folder: Path) -> None:
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(folder)], folder)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().splitlines()[-1:]
        return f"{error.cmd[0]} ended with exit code {error.returncode}: {''.join(last)}"
    if isinstance(error, StopIteration):
        return "the packages do not hold the program and its libraries"
    return str(error)
