"""A stream model for each generator, or for some, or for none."""

import asyncio
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hangs import load
from running_server import RunningServer, run_server, wait_until

from latentry.clients import AsyncClient, Client, Draining, NotFound

pytestmark = [pytest.mark.server, pytest.mark.acceptance]

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "misbehaving_models.py"
MISBEHAVING = (sys.executable, str(SCRIPT), "3", "30")
MODELS = ("wide", "large")
COUNTS = {"wide": 900, "large": 100}  # of several requests each


@pytest.fixture
def two(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of two models."""
    for name in MODELS:
        shutil.copytree(repository / name, tmp_path / "model_repository" / name)
    return tmp_path / "model_repository"


def running_models(server: RunningServer) -> list[str]:
    """Return the models that the server's processes run."""
    found = []
    for pid in server.stub_pids():
        parts = " ".join(psutil.Process(pid).cmdline()).split("/")
        found += [part for part in parts if part.removesuffix(".stream") in MODELS]
    return sorted(set(found))


def is_refused(client: Client, model: str) -> bool:
    try:
        next(client.stream(model, seeds=range(8)))
    except Draining:
        return True
    return False


async def async_error(url: str, model: str) -> str:
    async with AsyncClient(url) as client:
        with pytest.raises(NotFound) as caught:
            async for _ in client.stream(model, seeds=range(3)):
                pass
    return str(caught.value)


def test_without_streams_everything_else_works(two: Path) -> None:
    with run_server(two, "--streams", "none", "--instances", "1") as server:
        assert running_models(server) == ["large", "wide"]
        with Client(server.url) as client:
            assert client.models() == ["large", "wide"]
            assert client.health()
            assert len(client.generate("wide", seeds=range(40))) == 40
            with pytest.raises(NotFound, match="wide is not streamed by .*--streams all"):
                next(client.stream("wide", seeds=range(3)))
            with pytest.raises(NotFound, match="model 'nobody' is not being served; these are: l"):
                next(client.stream("nobody", seeds=range(3)))
            results: list[Any] = []
            thread = threading.Thread(
                target=lambda: results.append(client.generate("wide", seeds=range(64)))
            )
            with server.stopped("wide"):
                thread.start()
                wait_until(lambda: server.waiting("wide") == 3)
                server.process.terminate()
            thread.join()
            assert len(results[0]) == 64
        assert server.process.wait(timeout=60) == 0


def test_some_models_are_streamed(two: Path) -> None:
    with run_server(two, "--streams", "wide", "--instances", "1") as server:
        assert running_models(server) == ["large", "wide", "wide.stream"]
        with Client(server.url) as client:
            whole = client.generate("wide", seeds=range(20)).images
            chunks = [chunk.images for chunk in client.stream("wide", seeds=range(20))]
            np.testing.assert_array_equal(np.concatenate(chunks), whole)
            assert len(client.generate("large", seeds=range(3))) == 3
            with pytest.raises(NotFound, match="large is not streamed by"):
                next(client.stream("large", seeds=range(3)))
        assert "large is not streamed by" in asyncio.run(async_error(server.url, "large"))


@pytest.fixture
def patient(two: Path) -> Iterator[RunningServer]:
    with run_server(two, "--drain-s", "60", "--instances", "1") as server:
        yield server


def test_open_streams_of_all_models_finish(patient: RunningServer) -> None:
    assert running_models(patient) == ["large", "large.stream", "wide", "wide.stream"]
    with Client(patient.url) as client, ThreadPoolExecutor() as pool:
        whole = {name: client.generate(name, seeds=range(n)).images for name, n in COUNTS.items()}
        streams = {name: client.stream(name, seeds=range(n)) for name, n in COUNTS.items()}
        parts = {name: [next(stream).images] for name, stream in streams.items()}
        patient.process.terminate()

        wait_until(lambda: all(is_refused(client, name) for name in MODELS))

        def read(name: str) -> None:
            parts[name] += [chunk.images for chunk in streams[name]]

        list(pool.map(read, MODELS))
    for name in MODELS:
        np.testing.assert_array_equal(np.concatenate(parts[name]), whole[name])
    assert patient.process.wait(timeout=60) == 0


def test_one_open_stream_keeps_the_server_that_others_have_left(patient: RunningServer) -> None:
    with Client(patient.url) as client:
        stream = client.stream("large", seeds=range(300))
        next(stream)
        patient.process.terminate()
        wait_until(lambda: is_refused(client, "wide"))
        assert patient.process.poll() is None
        assert sum(len(chunk) for chunk in stream) > 200
    assert patient.process.wait(timeout=60) == 0


@pytest.mark.parametrize("model", [MODELS[0], pytest.param(MODELS[1], marks=pytest.mark.slow)])
def test_a_stopped_stream_of_any_model_is_replaced(two: Path, model: str) -> None:
    with (
        run_server(two, "--instances", "1", command=MISBEHAVING) as server,
        Client(server.url) as client,
    ):
        triton = psutil.Process(server.triton_pid())
        with load(server):
            psutil.Process(server.stub_pids_of(f"{model}.stream")[0]).suspend()
            wait_until(lambda: not triton.is_running(), 120)
        wait_until(client.health, 120)
        for name in MODELS:
            assert sum(len(chunk) for chunk in client.stream(name, seeds=range(20))) == 20
