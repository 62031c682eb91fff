"""The rooms: what each may import, where a library may be used, how large anything may grow."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# docs/design.md has the table and the reasons. The longest key that fits a module is its room.
ROOMS: dict[str, set[str]] = {
    "contract": set(),
    "training": {"contract"},
    "clients": {"contract"},
    "serving.entries": {"contract"},
    "serving.runtime": {"contract", "serving.entries", "serving.runtime.engines"},
    "serving.runtime.engines": {"contract", "serving.entries"},
    "serving.triton": {"contract", "serving.entries", "serving.runtime", "serving.runtime.engines"},
    "serving.server": {"contract", "serving.entries", "serving.runtime.engines", "serving.triton"},
    "export": {
        *("contract", "training"),
        *("serving.entries", "serving.runtime", "serving.runtime.engines"),
    },
    "synthesis": {"contract", "clients", "serving.runtime", "serving.runtime.engines"},
    "profiling": {"contract", "clients", "serving.entries", "serving.server"},
    "cli": {
        *("contract", "training", "clients", "export", "synthesis", "profiling"),
        *("serving.entries", "serving.runtime", "serving.triton", "serving.server"),
        "serving.runtime.engines",
    },
}
FOLDERS = sorted({room.partition(".")[0] for room in ROOMS})

# Libraries that belong to some rooms; all others may be used anywhere.
LIBRARIES: dict[str, set[str]] = {
    "onnxruntime": {"serving.runtime.engines"},
    "torch": {"training", "export"},
    "onnx": {"export", "serving.runtime.engines.quantization"},
    "openvino": {"serving.runtime.engines.openvino_cpu"},
    "nncf": {"serving.runtime.engines.quantization"},
    "onnxscript": {"export"},
    "triton_python_backend_utils": {"serving.triton"},
    "grpc": {"clients.transports", "profiling.load", "serving.server.probe"},
    "tritonclient": {
        *("clients.transports", "profiling.load"),
        *("serving.server.canary", "serving.server.probe"),
    },
    "ray": {"synthesis.crews"},
    "fsspec": {"synthesis.storage"},
    "pyarrow": {"synthesis.sinks"},
    "matplotlib": {"training", "profiling.report"},
    "typer": {"cli"},
    "rich": {"cli"},
}

MOST_LINES = 500
MOST_FILES = 12


def source_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in source_files()}


def room_of(module: str) -> str:
    fitting = [room for room in ROOMS if is_within(module, room)]
    return max(fitting, key=len, default="")


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def code_of(tree: ast.AST, *, strings: bool) -> Iterator[ast.AST]:
    """Go through a file and, with ``strings``, through the code in its strings."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if text is None or strings:
            yield node
        if strings and isinstance(text, str) and "import" in text:
            try:
                yield from ast.walk(ast.parse(text))
            except SyntaxError:
                continue


@cache
def imports_of(module: str, *, strings: bool = True) -> frozenset[str]:
    """Return what ``module`` imports at any level and, with ``strings``, what they name."""
    found: set[str] = set()
    for node in code_of(ast.parse(MODULES[module].read_text()), strings=strings):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module, or something in one.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(latentry(?:\.\w+)+)(?::\w+)?$", node.value))
    return frozenset(found)


def ours_of(module: str, *, strings: bool = True) -> set[str]:
    """Return the modules of ours that ``module`` imports."""
    found = set()
    for name in imports_of(module, strings=strings):
        ours = name.removeprefix("latentry.")
        if ours == name:
            continue
        while ours not in MODULES and "." in ours:
            ours = ours.rpartition(".")[0]
        if ours in MODULES:
            found.add(ours)
    return found - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module: str) -> None:
    room = room_of(module)
    if not room:
        assert not ours_of(module)  # the package above rooms of its own
        return
    for ours in ours_of(module):
        assert room_of(ours) in {room, *ROOMS[room]}, f"{module} imports {ours}"


@pytest.mark.parametrize("module", MODULES)
def test_a_library_stays_in_its_rooms(module: str) -> None:
    for name in imports_of(module):
        rooms = LIBRARIES.get(name.partition(".")[0])
        if rooms is not None:
            assert any(is_within(module, room) for room in rooms), f"{module} imports {name}"


def test_no_module_imports_itself_by_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, road: tuple[str, ...]) -> None:
        assert module not in road, " -> ".join([*road[road.index(module) :], module])
        if module in done:
            return
        # The table of commands names modules that are imported when their command runs.
        for ours in sorted(ours_of(module, strings=False)):
            visit(ours, (*road, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_table_would_see_imports_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from latentry.contract import seeds\n"
        "def f():\n    import latentry.contract.files\n"
        "TABLE = {'x': 'latentry.contract.spec:f'}\n"
        "COMMAND = 'from latentry.contract.wire import Arrays'\n"
    )
    MODULES["example"] = path
    try:
        assert ours_of("example") == {f"contract.{n}" for n in ("seeds", "files", "spec", "wire")}
    finally:
        del MODULES["example"]


@pytest.mark.parametrize("room", FOLDERS)
def test_a_room_refuses_its_bare_name(room: str) -> None:
    command = [sys.executable, "-c", f"import {room}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"import this package as latentry.{room}, not as {room}" in done.stderr


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def python_files() -> list[Path]:
    folders = [*FOLDERS, "tests", "benchmarks"]
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_too_long() -> None:
    lines = {path: path.read_text().count("\n") for path in python_files()}
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MOST_LINES} == {}


def test_no_folder_is_too_full() -> None:
    counts: dict[str, int] = {}
    for path in python_files():
        folder = str(path.parent.relative_to(ROOT))
        counts[folder] = counts.get(folder, 0) + 1
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES} == {}
