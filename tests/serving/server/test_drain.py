"""A server that is told to stop: streams finish, what is new is refused, and what cannot end is."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import RunningServer, run_server, wait_until
from tritonclient.grpc import InferenceServerClient, InferInput

from latentry.clients import Client, Draining, LatentryError, ServerGone

pytestmark = pytest.mark.server


@pytest.fixture
def small(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of its own with one small model."""
    shutil.copytree(repository / "wide", tmp_path / "model_repository" / "wide")
    return tmp_path / "model_repository"


@pytest.fixture
def patient(small: Path) -> Iterator[RunningServer]:
    with run_server(small, "--drain-s", "60", "--instances", "1") as server:
        yield server


def test_every_open_stream_finishes_and_nothing_new_begins(patient: RunningServer) -> None:
    # Some of one request, some of two: the second one goes on with an open stream.
    counts = [300] * 16 + [900] * 4
    streams = [Client(patient.url, timeout_s=None) for _ in counts]
    reference: dict[int, Any] = {}
    finished: list[int] = []
    errors: list[Exception] = []
    begun = [threading.Event() for _ in counts]

    def read(place: int) -> None:
        try:
            images = []
            for chunk in streams[place].stream("wide", seeds=range(counts[place])):
                images.append(chunk.images)
                begun[place].set()
            np.testing.assert_array_equal(np.concatenate(images), reference[counts[place]])
            finished.append(place)
        except Exception as error:
            errors.append(error)

    with Client(patient.url) as client, Client(patient.url) as other:
        for count in set(counts):
            reference[count] = client.generate("wide", seeds=range(count)).images
        other.info("wide")
        readers = [threading.Thread(target=read, args=(place,)) for place in range(len(counts))]
        for reader in readers:
            reader.start()
        assert all(event.wait(60) for event in begun)
        patient.process.terminate()

        def is_refused() -> bool:
            try:
                next(other.stream("wide", seeds=range(8)))
            except Draining:
                return True
            return False

        wait_until(is_refused)
        for reader in readers:
            reader.join()
        with pytest.raises((Draining, ServerGone)):
            client.generate("wide", seeds=range(4))
    assert not errors
    assert len(finished) == 20
    assert patient.process.wait(timeout=60) == 0
    for stream in streams:
        stream.close()


def test_single_requests_are_refused_while_streams_finish(patient: RunningServer) -> None:
    with Client(patient.url) as client, Client(patient.url, retry_for_s=0) as other:
        other.info("wide")
        stream = client.stream("wide", seeds=range(100_000))
        next(stream)
        patient.process.terminate()

        def is_refused() -> bool:
            try:
                other.generate("wide", seeds=range(4))
            except Draining as error:
                return "takes no new requests" in str(error)
            return False

        wait_until(lambda: next(stream) is not None and is_refused())
        assert len(next(stream)) > 0
        stream.close()
    assert patient.process.wait(timeout=60) == 0


def test_a_stream_that_cannot_end_hears_why(small: Path) -> None:
    with run_server(small, "--drain-s", "1") as server, Client(server.url) as client:
        stream = client.stream("wide", seeds=range(1_000_000))
        next(stream)
        server.process.terminate()
        with pytest.raises(ServerGone, match="shutting down") as broken:
            list(stream)
        assert isinstance(broken.value.__cause__, Draining)
        assert broken.value.resume_at
        assert server.process.wait(timeout=60) == 0


def test_slow_readers_get_everything(patient: RunningServer) -> None:
    """Triton is done long before they are: what they have not taken waits in its memory."""
    counts = {"one request": 700, "two requests": 1_400}
    with Client(patient.url) as client, ThreadPoolExecutor() as pool:
        client.info("wide")
        streams = {name: client.stream("wide", seeds=range(n)) for name, n in counts.items()}
        got = {name: len(next(stream)) for name, stream in streams.items()}
        patient.process.terminate()

        def read(name: str) -> int:
            for chunk in streams[name]:
                got[name] += len(chunk)
                time.sleep(0.1)
            return got[name]

        assert list(pool.map(read, counts)) == list(counts.values())
    assert patient.process.wait(timeout=60) == 0


def test_an_idle_raw_stream_keeps_it_no_longer_than_it_may(small: Path) -> None:
    with (
        run_server(small, "--drain-s", "4") as server,
        InferenceServerClient(server.url) as raw,
    ):
        answers: list[Any] = []
        raw.start_stream(lambda result, error: answers.append(error or result))
        seed = InferInput("seed", [4], "INT64")
        seed.set_data_from_numpy(np.arange(4))
        raw.async_stream_infer("wide.stream", [seed])
        wait_until(lambda: answers)
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0


def test_a_second_signal_does_not_wait(small: Path) -> None:
    with run_server(small, "--drain-s", "600") as server, Client(server.url) as client:
        stream = client.stream("wide", seeds=range(1_000_000))
        next(stream)
        server.process.terminate()
        wait_until(lambda: (next(stream), is_draining(server))[1])
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
        with pytest.raises(LatentryError):
            list(stream)


def is_draining(server: RunningServer) -> bool:
    with Client(server.url, retry_for_s=0) as client:
        try:
            next(client.stream("wide", seeds=range(2)))
        except Draining:
            return True
    return False
