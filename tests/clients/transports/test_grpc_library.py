import os

import pytest

from latentry.clients.transports.grpc_library import library


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_the_users_own_setting_of_grpc_stays(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    name = "GRPC_ENABLE_FORK_SUPPORT"
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    assert library().__name__ == "grpc"
    assert os.environ.get(name) == value
