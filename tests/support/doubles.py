"""Fixtures around the generator made of arithmetic."""

from collections.abc import Callable, Iterator

import pytest
from arithmetic_server import ArithmeticServer, FakeTransport, info_of
from certificates import Authority

from latentry.contract.transport import ModelInfo


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def server() -> Iterator[ArithmeticServer]:
    running = ArithmeticServer()
    yield running
    running.stop()


@pytest.fixture
def start_server() -> Iterator[Callable[..., ArithmeticServer]]:
    started: list[ArithmeticServer] = []

    def start(port: int = 0) -> ArithmeticServer:
        started.append(ArithmeticServer(port))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def info() -> Callable[..., ModelInfo]:
    return info_of
