"""The vendor's load generator ``perf_analyzer``: find it, fetch it, run it.

``pip install perf-analyzer`` gives an empty 0.1.0 where glibc is older than 2.38. The program of
2.51 lies inside the tritonclient 2.51.0 wheel; it needs libcudart (a wheel, used without a GPU) and
Debian's libb64. They are unpacked into a folder of this user's cache; nothing is installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from latentry.contract.errors import NotFound, ServerFault

INSTALL_COMMAND = "latentry doctor --install perf-analyzer"

_PROGRAM = "perf_analyzer"
_VERSION = "2.51.0"
_WHEELS = (f"tritonclient=={_VERSION}", "nvidia-cuda-runtime-cu12==12.9.79")
_DEBIAN_PACKAGE = "libb64-0d"
_FILES = ("**/libcudart.so.12", "**/libb64.so.0d", f"**/data/bin/{_PROGRAM}")
_PLACEHOLDER_BYTES = 100_000
_LAST_LINES = 8
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UNPROXIED = "no_grpc_proxy"  # gRPC reads this one, or else no_proxy


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer, and the environment that it runs in."""

    program: Path
    environment: dict[str, str] = field(repr=False)

    def run(self, *arguments: str, timeout_s: float | None = None) -> str:
        """Return what it prints.

        Raises:
            ServerFault: It ended with an error, such as a failed request, or not in time.
        """
        try:
            done = subprocess.run(
                [str(self.program), *arguments],
                env=self.environment,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.CalledProcessError as error:
            lines = error.stdout.strip().splitlines()[-_LAST_LINES:]
            raise ServerFault("perf_analyzer failed:\n" + "\n".join(lines)) from error
        except subprocess.TimeoutExpired as error:
            raise ServerFault(f"perf_analyzer did not end within {timeout_s:g} s") from error
        return done.stdout

    def version(self) -> str:
        """Return its version; raises ServerFault or OSError where it does not run."""
        # "Perf Analyzer Version 2.51.0 (commit unknown)"
        return self.run("--version", timeout_s=20).partition("Version ")[2].split(" ")[0]


def find_perf_analyzer() -> PerfAnalyzer | None:
    """Return the one on the PATH (as in the vendor's SDK image) or else the fetched one.

    The placeholder that pip installs is passed over.
    """
    on_path = shutil.which(_PROGRAM)
    if on_path and not is_placeholder(Path(on_path)):
        return PerfAnalyzer(Path(on_path), _unproxied())
    program = fetched_folder() / _PROGRAM
    return _with_libraries(program) if program.exists() else None


def require_perf_analyzer() -> PerfAnalyzer:
    """Return it, or raise NotFound with the command that fetches it."""
    if found := find_perf_analyzer():
        return found
    on_path = shutil.which(_PROGRAM)
    what = f"{on_path} is pip's placeholder, which does nothing" if on_path else "there is none"
    raise NotFound(f"perf_analyzer is needed and {what}; run `{INSTALL_COMMAND}`")


def is_placeholder(program: Path) -> bool:
    """Whether ``program`` is a script of a few bytes instead of the 20 MB of the real one."""
    return program.stat().st_size < _PLACEHOLDER_BYTES


def fetched_folder() -> Path:
    """Return where :func:`fetch_perf_analyzer` puts the program."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latentry" / f"{_PROGRAM}-{_VERSION}"


def fetch_perf_analyzer() -> PerfAnalyzer:
    """Put the program and its two libraries into this user's cache, all of them or none.

    Raises:
        NotFound: pip or apt did not deliver, or what they delivered does not run here.
    """
    target = fetched_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    # On the same file system, so that the folder appears whole.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        try:
            _unpack(Path(name))
            for pattern in _FILES:
                found = next(Path(name).glob(pattern))
                shutil.copy(found, whole / found.name)
            (whole / _PROGRAM).chmod(0o755)
            _with_libraries(whole / _PROGRAM).version()
        except (subprocess.CalledProcessError, ServerFault, OSError, StopIteration) as error:
            raise NotFound(
                f"perf_analyzer {_VERSION} cannot be fetched: {_reason(error)}. It needs x86-64 "
                "Linux, pip, and Debian's libb64-0d by apt-get; or put the vendor's perf_analyzer "
                "on the PATH"
            ) from error
        with suppress(OSError):  # another process was first
            whole.rename(target)
    return _with_libraries(target / _PROGRAM)


def _with_libraries(program: Path) -> PerfAnalyzer:
    paths = [str(program.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    library_path = os.pathsep.join(path for path in paths if path)
    return PerfAnalyzer(program, {**_unproxied(), "LD_LIBRARY_PATH": library_path})


def _unproxied() -> dict[str, str]:
    """Return the environment, in which a server on this machine is not asked through a proxy."""
    before = [os.environ[name] for name in (_UNPROXIED, "no_proxy") if os.environ.get(name)]
    return {**os.environ, _UNPROXIED: ",".join([*before[:1], *_LOOPBACK])}


def _unpack(folder: Path) -> None:
    """Download the wheels and the Debian package and unpack them in ``folder``."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    _run([*pip, *_WHEELS], folder)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", _DEBIAN_PACKAGE]
    try:
        _run(download, folder)
    except subprocess.CalledProcessError:
        _run(["apt-get", "update", "-qq"], folder)
        _run(download, folder)
    (package,) = folder.glob("*.deb")
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
