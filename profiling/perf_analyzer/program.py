"""The vendor's load generator ``perf_analyzer``: find it, run it."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from latentry.contract.errors import NotFound, ServerFault

INSTALL_COMMAND = "latentry doctor --install perf-analyzer"
PROGRAM = "perf_analyzer"
FETCHED_VERSION = "2.51.0"

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
    on_path = shutil.which(PROGRAM)
    if on_path and not is_placeholder(Path(on_path)):
        return PerfAnalyzer(Path(on_path), _unproxied())
    program = fetched_folder() / PROGRAM
    return with_libraries(program) if program.exists() else None


def require_perf_analyzer() -> PerfAnalyzer:
    """Return it, or raise NotFound with the command that fetches it."""
    if found := find_perf_analyzer():
        return found
    on_path = shutil.which(PROGRAM)
    what = f"{on_path} is pip's placeholder, which does nothing" if on_path else "there is none"
    raise NotFound(f"perf_analyzer is needed and {what}; run `{INSTALL_COMMAND}`")


def is_placeholder(program: Path) -> bool:
    """Whether ``program`` is a script of a few bytes instead of the 20 MB of the real one."""
    return program.stat().st_size < _PLACEHOLDER_BYTES


def fetched_folder() -> Path:
    """Return where :mod:`latentry.profiling.perf_analyzer.fetch` puts the program."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "latentry" / f"{PROGRAM}-{FETCHED_VERSION}"


def with_libraries(program: Path) -> PerfAnalyzer:
    """Return a program whose libraries lie beside it."""
    paths = [str(program.parent), os.environ.get("LD_LIBRARY_PATH", "")]
    library_path = os.pathsep.join(path for path in paths if path)
    return PerfAnalyzer(program, {**_unproxied(), "LD_LIBRARY_PATH": library_path})


def _unproxied() -> dict[str, str]:
    """Return the environment, in which a server on this machine is not asked through a proxy."""
    before = [os.environ[name] for name in (_UNPROXIED, "no_proxy") if os.environ.get(name)]
    return {**os.environ, _UNPROXIED: ",".join([*before[:1], *_LOOPBACK])}
