"""What is packaged: every folder, and a wheel that serves with nothing of the sources beside it."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = (
    *("contract", "training", "export", "serving"),
    *("clients", "synthesis", "profiling", "cli"),
)


def packaged_files() -> set[str]:
    """Return the names in a wheel of all that lies in the rooms, but for the checkpoints."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    ours = [path.relative_to(ROOT) for path in files if path.suffix != ".pyc"]
    return {f"latentry/{path}" for path in ours if "checkpoints" not in path.parts}


def test_every_package_folder_is_declared() -> None:
    declared = set(PYPROJECT["tool"]["setuptools"]["packages"])
    present = {
        "latentry." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert declared == present


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built elsewhere: pip leaves build/ beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(folder / "source")], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_only(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"latentry"}
    assert {name.split("/")[1] for name in names} == set(ROOMS)
    assert all(f"latentry/{room}/py.typed" in names for room in ROOMS)
    assert packaged_files() <= set(names)


@pytest.mark.server
@pytest.mark.acceptance
def test_the_wheel_alone_serves_and_streams(wheel: Path, repository: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (site,) = (environment / "lib").glob("python*/site-packages")
    # The dependencies come from this environment, Latentry itself only from the wheel: a path
    # file of a path file is not read, so the editable install stays out of sight.
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(dependencies)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    script = tmp_path / "stream.py"
    script.write_text(WHEEL_SCRIPT)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), str(script), str(repository)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=clean, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "100"
    assert str(environment) in done.stdout


WHEEL_SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import latentry.clients
from latentry.clients import Client
print(latentry.clients.__file__)
latentry_ = str(Path(sys.executable).parent / "latentry")
command = [latentry_, "serve", "--repository", sys.argv[1], "--models", "wide", "--json"]
command += ["--port", "0", "--metrics-port", "0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    try:
        with Client(json.loads(server.stdout.readline())["url"]) as client:
            print(sum(len(chunk) for chunk in client.stream("wide", seeds=range(100))))
    finally:
        server.terminate()
"""
