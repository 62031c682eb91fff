"""Which server is started, and in which environment, whatever that of its supervisor lacks."""

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from running_server import is_running, wait_until

from latentry.contract.errors import ServeError
from latentry.serving.triton.tritonserver import (
    Installation,
    find_tritonserver,
    lay_out_backends,
    server_environment,
    start_tritonserver,
)

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an installed wheel, and have no other server here."""
    folder = tmp_path / "pytriton"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_stub",
        f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
    ):
        file = folder / "tritonserver" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    return folder


def test_the_server_of_the_path_comes_before_that_of_the_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "tritonserver"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver() == Installation(program, None)


def test_where_there_is_no_server_it_is_said_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServeError, match=r'no tritonserver: .*"latentry\[serve,cpu\]"'):
        find_tritonserver()


@pytest.mark.parametrize("wheel", [None, Path("/nowhere/pytriton")])
def test_without_any_path_this_python_is_found(
    monkeypatch: pytest.MonkeyPatch, wheel: Path | None
) -> None:
    monkeypatch.delenv("PATH")
    installation = Installation(Path("/nowhere/tritonserver"), wheel)
    environment = server_environment(installation, "id", Path("/nowhere/signs"))
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert "" not in environment["PATH"].split(":")


def test_the_server_of_the_wheel_gets_the_stub_of_this_python(wheel: Path, tmp_path: Path) -> None:
    installation = find_tritonserver()
    assert installation == Installation(wheel / "tritonserver" / "bin" / "tritonserver", wheel)
    backends = tmp_path / "made" / "backends"
    assert lay_out_backends(installation, backends) == [f"--backend-directory={backends}"]
    library, stub = sorted((backends / "python").iterdir())
    assert library.samefile(wheel / "tritonserver" / "backends" / "python" / library.name)
    assert not stub.is_symlink()
    assert stub.read_text() == f"python_backend_stubs/{VERSION}/{stub.name}"
    assert lay_out_backends(Installation(Path("tritonserver"), None), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_wheel_for_other_pythons_is_named(wheel: Path) -> None:
    (wheel / "tritonserver" / "python_backend_stubs" / VERSION).rename(wheel / "other")
    with pytest.raises(ServeError, match=f"has no stub for Python {VERSION}"):
        find_tritonserver()


def test_a_server_has_its_own_environment_and_group_and_writes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = ["/bin/sh", "-c", "echo $WHAT; echo $WHAT >&2; read x; exec /bin/sleep 1000"]
    process = start_tritonserver(command, {"WHAT": "this"}, log)
    try:
        assert os.getsid(process.pid) == process.pid
        wait_until(lambda: log.read_text() == "this\nthis\n")
    finally:
        process.kill()
        process.wait()


START = """
import sys
from pathlib import Path
from latentry.serving.triton.tritonserver import start_tritonserver
print(start_tritonserver(["/bin/sleep", "1000"], {}, Path(sys.argv[1])).pid, flush=True)
sys.stdin.read()
"""


def test_a_server_dies_with_its_supervisor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        server = int(supervisor.stdout.readline())
        supervisor.kill()
        try:
            wait_until(lambda: not is_running(server))
        finally:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
