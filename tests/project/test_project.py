"""Tests about the project itself: packaging, rooms, public names, help."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from running_server import LATENTRY

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = (
    *("contract", "training", "export", "serving"),
    *("clients", "synthesis", "profiling", "cli"),
)


def room_files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_every_package_folder_is_declared() -> None:
    declared = set(PYPROJECT["tool"]["setuptools"]["packages"])
    present = {
        "latentry." + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert declared == present | {"latentry.model_repository"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_its_bare_name(room: str) -> None:
    command = [sys.executable, "-c", f"import {room}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"import this package as latentry.{room}, not as {room}" in done.stderr


def test_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, latentry.clients, latentry.cli.main;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'grpc', 'tritonclient', 'psutil'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_has_an_entry_in_the_changelog() -> None:
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert PYPROJECT["project"]["version"] in headings


def test_the_constraints_name_the_tested_torch_and_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", line) for line in pins)


COMMANDS = (
    *("train", "export", "models", "serve", "health", "generate", "stream"),
    *("synthesize", "profile", "doctor"),
)


@pytest.fixture(scope="module")
def listed() -> str:
    done = subprocess.run([str(LATENTRY), "--help"], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, listed: str) -> None:
    done = subprocess.run(
        [str(LATENTRY), command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"latentry {command}" in done.stdout  # the usage, and an example
    assert re.search(rf"^\s+{command}\s+\w", listed, re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built elsewhere: pip leaves build/ beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*ROOMS, "model_repository"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(folder / "source")], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_and_the_stream_model_only(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"latentry"}
    assert {name.split("/")[1] for name in names} == {*ROOMS, "model_repository"}
    assert sorted(name for name in names if "/model_repository/" in name) == [
        "latentry/model_repository/generate_stream/1/model.py",
        "latentry/model_repository/generate_stream/config.pbtxt",
    ]
    assert all(f"latentry/{room}/py.typed" in names for room in ROOMS)
    sources = {f"latentry/{path.relative_to(ROOT)}" for path in room_files()}
    assert sources <= set(names)


@pytest.mark.server
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
