"""50,000 odd requests, unary and in streams, with a fixed seed: no crash, no wrong image.

A stream is ended after its answer: what else is sent on one that has seen an error hangs it, or
kills Triton 2.51, with or without the header that is to blame for most crashes.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from odd_requests import OddRequests
from running_server import RunningServer, run_server
from tritonclient.grpc import service_pb2

from latentry.clients import Client

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(3_600)]

SERVICE = "/inference.GRPCInferenceService/"
SEED, REQUESTS, CHECK_EVERY, ANSWER_S = 20_261_127, 50_000, 1_000, 60.0
MODELS = ("wide", "digits", "mapped")


@pytest.fixture(scope="module")
def fuzzed(repository: Path) -> Iterator[RunningServer]:
    """Return a server that is not started again for its memory while it is fuzzed."""
    options = ("--models", ",".join(MODELS), "--most-memory", "12GiB")
    with run_server(repository, *options) as server:
        yield server


class Caller:
    """Sends bytes as requests and counts what comes back."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._channel = grpc.insecure_channel(url)
        self._unary = self._channel.unary_unary(SERVICE + "ModelInfer")
        self._stream = self._channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    def ask(self, message: bytes) -> None:
        call = self._unary.future(message)
        try:
            call.result(ANSWER_S)
            self.outcomes["OK"] += 1
        except grpc.RpcError as error:
            self.outcomes[error.code().name] += 1

    def ask_in_a_stream(self, message: bytes) -> None:
        try:
            for answer in self._stream(iter([message])):
                self.outcomes["in a stream" if answer.error_message else "chunk"] += 1
        except grpc.RpcError as error:
            self.outcomes[error.code().name] += 1

    def close(self) -> None:
        self._channel.close()


def test_odd_requests_harm_nobody(fuzzed: RunningServer) -> None:
    odd = OddRequests(SEED)
    caller = Caller(fuzzed.url)
    processes = [psutil.Process(pid) for pid in (fuzzed.triton_pid(), *fuzzed.stub_pids())]
    with Client(fuzzed.url) as client:

        def draw() -> dict[str, Any]:
            labels = {"digits": 7, "mapped": 2}
            return {
                model: client.generate(model, seeds=range(8), class_label=labels.get(model)).images
                for model in MODELS
            }

        reference = draw()
        sent = 0
        while sent < REQUESTS:
            if sent % 2:
                caller.ask_in_a_stream(odd.request("wide.stream"))
            else:
                caller.ask(odd.request(*MODELS))
            sent += 1
            if sent % CHECK_EVERY == 0:
                assert all(process.is_running() for process in processes), sent
                for model, images in draw().items():
                    np.testing.assert_array_equal(images, reference[model])
    caller.close()
    logging.getLogger(__name__).info("outcomes: %s", dict(caller.outcomes))
    assert all(process.is_running() for process in processes)
    assert caller.outcomes["OK"] > 0
    assert caller.outcomes["chunk"] > 0
    assert caller.outcomes["INVALID_ARGUMENT"] > REQUESTS // 10
    assert caller.outcomes["UNAVAILABLE"] == 0
