"""Find the vendor's perf_analyzer, or fetch it out of packages where pip's own is a placeholder.

``pip install perf-analyzer`` gives an empty 0.1.0 where glibc is older than 2.38. The real program
of 2.51 lies inside the tritonclient 2.51.0 wheel; it needs libcudart (a wheel, used without a GPU)
and Debian's libb64. Everything is unpacked under ``.perf_analyzer/``; nothing is installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / ".perf_analyzer"
_WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
_DEBIAN_PACKAGE = "libb64-0d"
_PLACEHOLDER_BYTES = 100_000


@dataclass(frozen=True)
class PerfAnalyzer:
    """A perf_analyzer that runs, and the environment that it runs in."""

    program: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> str:
        """Return what it prints; raises CalledProcessError with its output."""
        done = subprocess.run(
            [str(self.program), *arguments],
            env=self.environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout


def find_perf_analyzer() -> PerfAnalyzer | None:
    """Return the one on the PATH (the vendor's SDK image) or the fetched one, if it runs."""
    on_path = shutil.which("perf_analyzer")
    if on_path and Path(on_path).stat().st_size > _PLACEHOLDER_BYTES:
        return PerfAnalyzer(Path(on_path), dict(os.environ))
    program = FOLDER / "perf_analyzer"
    if not program.exists():
        return None
    paths = [str(FOLDER), os.environ.get("LD_LIBRARY_PATH", "")]
    library_path = os.pathsep.join(path for path in paths if path)
    return PerfAnalyzer(program, {**os.environ, "LD_LIBRARY_PATH": library_path})


def fetch() -> None:
    """Put the program and its two libraries in ``.perf_analyzer/``.

    Raises:
        CalledProcessError: pip or apt did not deliver.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", name, *_WHEELS], check=True)
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
        _fetch_debian_package(folder)
        FOLDER.mkdir(exist_ok=True)
        for pattern in ("**/libcudart.so.12", "**/libb64.so.0d", "**/data/bin/perf_analyzer"):
            found = next(folder.glob(pattern))
            shutil.copy(found, FOLDER / found.name)
        (FOLDER / "perf_analyzer").chmod(0o755)


def _fetch_debian_package(folder: Path) -> None:
    download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", _DEBIAN_PACKAGE]
    try:
        subprocess.run(download, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    except subprocess.CalledProcessError:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(download, cwd=folder, check=True)
    package = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)


def main() -> int:
    """Fetch it unless there is one; a machine without it still runs everything else."""
    if find_perf_analyzer() is None:
        try:
            fetch()
        except (subprocess.CalledProcessError, OSError, StopIteration) as error:
            print(f"no perf_analyzer: {error}; its tests will be skipped (docs/operations.md)")
            return 0
    found = find_perf_analyzer()
    print(f"perf_analyzer: {found.program if found else 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
