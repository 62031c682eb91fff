"""What a supervisor asks its server, and what it makes of the answers."""

import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from arithmetic_server import ArithmeticServer
from running_server import wait_until
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from latentry.contract.errors import ServeError
from latentry.contract.images import Uint8
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.repository import newest_entries
from latentry.serving.server.canary import Canary, NoGolden, Pending, QueueFull
from latentry.serving.server.probe import ReadinessProbe


@pytest.fixture
def asked() -> Iterator[ArithmeticServer]:
    running = ArithmeticServer()
    yield running
    running.stop()


@contextmanager
def serving(servicer: service_pb2_grpc.GRPCInferenceServiceServicer) -> Iterator[str]:
    """Give the address of a server that answers so."""
    with futures.ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield url
        finally:
            server.stop(None).wait()


class Asker:
    """A probe, and the clock that it goes by."""

    def __init__(self, url: str) -> None:
        self.now_s = 0.0
        self.probe = ReadinessProbe(url, lambda: self.now_s)

    def hung_after(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.probe.step()


def test_a_server_is_ready_when_it_says_so(asked: ArithmeticServer) -> None:
    asker = Asker(asked.url)
    asked.double.transport.is_ready = False
    with closing(asker.probe):
        assert not asker.probe.ready
        # It is asked again soon after each answer.
        wait_until(lambda: asker.hung_after(0.1) or asked.double.calls.count("ready") > 3)
        assert not asker.probe.ready
        asked.double.transport.is_ready = True
        wait_until(lambda: asker.hung_after(0.1) or asker.probe.ready)
        assert asker.probe.ready


def test_three_answers_that_do_not_come_are_a_server_that_hangs(asked: ArithmeticServer) -> None:
    asker = Asker(asked.url)
    with closing(asker.probe):
        wait_until(lambda: asker.probe.step() or asker.probe.ready)
        asked.double.hold_questions.clear()
        assert [asker.hung_after(2.0) for _ in range(4)] == [False, False, False, True]
        asked.double.hold_questions.set()
        wait_until(lambda: not asker.probe.step())  # one answer makes up for those


def test_nobody_there_is_a_server_that_hangs() -> None:
    asker = Asker("127.0.0.1:1")
    with closing(asker.probe):
        assert not asker.probe.step()
        wait_until(lambda: asker.hung_after(0.1))
        assert not asker.probe.ready


def test_a_golden_is_not_waited_for_unless_told() -> None:
    start = time.monotonic()
    assert [Pending().answer() for _ in range(60)] == [None] * 60
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("text", "kind"), [("Exceeds maximum queue size", QueueFull), ("unhealthy", NoGolden)]
)
def test_an_error_is_no_golden(text: str, kind: type[NoGolden]) -> None:
    pending = Pending()
    pending.resolve(None, InferenceServerException(text))
    with pytest.raises(NoGolden, match=text) as error:
        pending.answer()
    assert type(error.value) is kind


class Drawing(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """A server that draws these images [N, H, W, C] for the seeds 0 .. N-1."""

    def __init__(self, images: Uint8) -> None:
        self.images = images
        self.seeds: list[list[int]] = []

    def ModelInfer(self, request: Any, context: Any) -> Any:
        seeds = np.frombuffer(request.raw_input_contents[0], np.int64)
        self.seeds.append(seeds.tolist())
        images = self.images[seeds]
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        answer.outputs.add(name="image", datatype="UINT8", shape=images.shape)
        answer.raw_output_contents.append(images.tobytes())
        return answer


def test_every_golden_is_asked_for_alone_and_compared(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (entry,) = newest_entries(repository, ("wide",))
    drawing = Drawing(read_goldens(entry).outputs["image"])
    with serving(drawing) as url, closing(Canary(url, [entry])) as canary:
        assert canary.check_all(lambda *_: True) == []
        assert drawing.seeds == [[index] for index in range(8)]
        pending = canary.ask("wide", 7)
        answer = pending.answer(60.0)
        assert answer is not None
        assert canary.compare("wide", answer, 7).exact
        assert not canary.compare("wide", answer, 6).passed
        drawing.images[3, 0, 0, 0] ^= 1
        with pytest.raises(
            ServeError, match="wide does not draw its goldens: image of golden 3 differs"
        ):
            canary.check_all(lambda *_: True)
    assert (tmp_path / "latentry-canary-wide.png").exists()


class Counting(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """A server that has answered some requests, and refused some."""

    def ModelStatistics(self, request: Any, context: Any) -> Any:
        answer = service_pb2.ModelStatisticsResponse()
        counted = answer.model_stats.add(name=request.name).inference_stats
        counted.success.count, counted.fail.count = 30, 12
        return answer


def test_refused_requests_are_answered_ones() -> None:
    with serving(Counting()) as url, closing(Canary(url, [])) as canary:
        assert canary.count_requests("model") == 42
    with closing(Canary("127.0.0.1:1", [])) as canary:
        assert canary.count_requests("model") == -1
