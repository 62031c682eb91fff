"""The environment of a server follows from that of its supervisor, whatever that lacks."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentry.contract.errors import ServeError
from latentry.serving.triton.tritonserver import (
    Installation,
    find_tritonserver,
    lay_out_backends,
    server_environment,
)


@pytest.mark.parametrize("wheel", [None, Path("/nowhere/pytriton")])
def test_without_any_path_this_python_is_found(
    monkeypatch: pytest.MonkeyPatch, wheel: Path | None
) -> None:
    monkeypatch.delenv("PATH")
    installation = Installation(Path("/nowhere/tritonserver"), wheel)
    environment = server_environment(installation, "id", Path("/nowhere/signs"))
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert "" not in environment["PATH"].split(":")


def test_without_any_triton_it_says_where_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServeError, match=r"nvidia-pytriton is not installed; .*latentry\[serve"):
        find_tritonserver()


def test_a_wheel_without_a_stub_for_this_python_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    wheel = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: wheel)
    with pytest.raises(ServeError, match="has no stub for Python 3.*; use Python 3.11 or 3.12"):
        find_tritonserver()


def test_the_vendors_server_brings_its_own_backends(tmp_path: Path) -> None:
    assert lay_out_backends(Installation(Path("/nowhere/tritonserver"), None), tmp_path) == []
    assert list(tmp_path.iterdir()) == []
