"""The environment of a server follows from that of its supervisor, whatever that lacks."""

import sys
from pathlib import Path

import pytest

from latentry.serving.triton.tritonserver import Installation, server_environment


@pytest.mark.parametrize("wheel", [None, Path("/nowhere/pytriton")])
def test_without_any_path_this_python_is_found(
    monkeypatch: pytest.MonkeyPatch, wheel: Path | None
) -> None:
    monkeypatch.delenv("PATH")
    installation = Installation(Path("/nowhere/tritonserver"), wheel)
    environment = server_environment(installation, "id", Path("/nowhere/signs"))
    assert environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert "" not in environment["PATH"].split(":")
