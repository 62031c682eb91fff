"""Which server is started, and in which environment, whatever that of its supervisor lacks."""

import importlib.util
import sys
from pathlib import Path

import pytest

from latentry.contract.errors import ServeError
from latentry.serving.triton.tritonserver import (
    Installation,
    find_tritonserver,
    server_environment,
)


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
