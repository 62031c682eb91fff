"""Fixtures around the generator made of arithmetic, and what runs a command in this process."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import pytest
from arithmetic_server import ArithmeticServer, FakeTransport, info_of
from certificates import Authority
from running_server import LATENTRY

from latentry.cli.main import main
from latentry.clients.samples import CallerArguments, CheckedSamples, samples_from_arguments
from latentry.contract.transport import ModelInfo


class Done(NamedTuple):
    """What a command did; the white space of ``err`` is single blanks."""

    code: int
    out: str
    err: str


RunCommand = Callable[..., Done]


class InfoOf(Protocol):
    """Returns what a generator of that name tells of itself."""

    def __call__(self, name: str, version: str = "1", max_batch_size: int = 8) -> ModelInfo: ...


def asked(model: ModelInfo, *, max_bytes: int | None = None, **arguments: Any) -> CheckedSamples:
    """Return the samples that these arguments of ``Client.generate`` ask of a model."""
    own = {name: arguments.pop(name) for name in ("seeds", "n", "format") if name in arguments}
    return samples_from_arguments(
        model, CallerArguments(inputs=arguments, **own), max_bytes=max_bytes
    )


def on_terminal(*arguments: object) -> str:
    """Run a command whose standard error is a terminal; return what it shows there."""
    ours, theirs = os.openpty()
    command = [str(LATENTRY), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # EIO: nobody holds the other end any more
            while data := os.read(ours, 4096):
                shown += data
    os.close(ours)
    return shown.decode()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def arithmetic_server() -> Iterator[ArithmeticServer]:
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
def info() -> InfoOf:
    return info_of


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Return what runs a command, given as its arguments, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Done:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Done(code, said.out, re.sub(r"\s+", " ", said.err))

    return call
