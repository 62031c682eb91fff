"""What Triton itself says inside a stream, and that each of its texts is mapped to the right error.

Requests are made by hand here: the client sends none of these.
"""

import os
import queue
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from running_server import RunningServer, run_server
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from latentry.clients import (
    BadRequest,
    Busy,
    Client,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    ServerGone,
)
from latentry.clients.transports.codec import ASK_FINAL_RESPONSE, is_final
from latentry.clients.transports.rpc_errors import error_from_status

pytestmark = pytest.mark.server

Tensor = tuple[str, str, list[int], bytes]


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


SEED: Tensor = ("seed", "INT64", [1], integers(1))
PNG: Tensor = ("format", "BYTES", [1], text(b"png"))


def request_of(model: str, *tensors: Tensor, **fields: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, raw in tensors:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    request.parameters[ASK_FINAL_RESPONSE].bool_param = True
    return request


def stream_of(*tensors: Tensor, **fields: Any) -> Any:
    return request_of("wide.stream", *tensors, **fields)


def without_contents(request: Any) -> Any:
    del request.raw_input_contents[-1]
    return request


def with_parameter(request: Any, name: str, **value: Any) -> Any:
    request.parameters[name].CopyFrom(service_pb2.InferParameter(**value))
    return request


def with_contents_twice(request: Any) -> Any:
    request.inputs[-1].contents.int64_contents.append(1)
    return request


def in_shared_memory(request: Any) -> Any:
    request.inputs[-1].parameters["shared_memory_region"].string_param = "nobody's"
    return request


BAD_REQUESTS = {
    "our own refusal": stream_of(("seed", "INT64", [1], integers(-1))),
    "another of ours": request_of("digits.stream", SEED),
    "a model named": stream_of(SEED, ("model", "BYTES", [1], text(b"wide"))),
    "version of letters": stream_of(SEED, model_version="new"),
    "dtype": stream_of(("seed", "FP32", [1], b"1234")),
    "dtype of the same size": stream_of(("seed", "UINT64", [1], integers(1))),
    "unknown dtype": stream_of(("seed", "COMPLEX", [1], integers(1))),
    "rank": stream_of(("seed", "INT64", [1, 1], integers(1))),
    "negative shape": stream_of(("seed", "INT64", [-1], integers(1))),
    "no inputs": stream_of(),
    "unknown input": stream_of(SEED, ("soul", "INT64", [1], integers(1))),
    "an input twice": stream_of(SEED, SEED),
    "too few bytes": stream_of(("seed", "INT64", [4], integers(1))),
    "too many bytes": stream_of(("seed", "INT64", [1], integers(1, 2))),
    "more texts": stream_of(SEED, ("format", "BYTES", [1], text(b"png") + text(b"raw"))),
    "shape of texts": stream_of(SEED, ("format", "BYTES", [2], text(b"png"))),
    "a text cut short": stream_of(SEED, ("format", "BYTES", [1], struct.pack("<I", 10) + b"abc")),
    "a length cut short": stream_of(SEED, ("format", "BYTES", [1], b"ab")),
    "no latent": stream_of(PNG),
    "no contents": without_contents(stream_of(SEED)),
    "contents twice": with_contents_twice(stream_of(SEED)),
    "unknown output": stream_of(
        SEED, outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="x")]
    ),
    "priority": with_parameter(stream_of(SEED), "priority", string_param="high"),
    "reserved parameter": with_parameter(stream_of(SEED), "triton_x", bool_param=True),
    "rank of a batch": request_of("wide", SEED),
    "too large a batch": request_of("wide", ("seed", "INT64", [99, 1], integers(*range(99)))),
    "rows that differ": request_of(
        "mapped",
        ("seed", "INT64", [2, 1], integers(1, 2)),
        ("class_label", "INT64", [1, 1], integers(1)),
    ),
}
OTHERS = {
    "unknown model": (request_of("cats", SEED), NotFound),
    "model without a name": (request_of("", SEED), NotFound),
    "unknown version": (stream_of(SEED, model_version="7"), NotFound),
    "unknown generator": (request_of("cats.stream", SEED), NotFound),
    "invalid output": (
        request_of("breaking.stream", SEED, ("count", "INT64", [1], integers(500))),
        InvalidOutput,
    ),
}


@contextmanager
def open_stream(url: str, request: Any) -> Iterator[Any]:
    """Send one request on a stream of its own; give its messages as they come."""
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outbox.put(request)
    with grpc.insecure_channel(url) as channel:
        stub = GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter(outbox.get, None), timeout=60)
        try:
            yield call
        finally:
            outbox.put(None)
            call.cancel()


def error_in(messages: Any, url: str) -> LatentryError | None:
    """Return the error that a stream brings before its end mark; gRPC's own are none."""
    for message in messages:
        if message.error_message:
            return error_from_status(None, message.error_message, url)
        if is_final(message.infer_response):
            break
    return None


def answer(url: str, request: Any) -> LatentryError | None:
    with open_stream(url, request) as messages:
        return error_in(messages, url)


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_one_inside_a_stream(case: str, triton: RunningServer) -> None:
    error = answer(triton.url, BAD_REQUESTS[case])
    assert type(error) is BadRequest, error
    assert not str(error).startswith("[")


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_not_there_or_no_number(case: str, triton: RunningServer) -> None:
    request, expected = OTHERS[case]
    assert type(answer(triton.url, request)) is expected


def test_a_full_queue_a_dead_model_and_a_server_that_stops(repository: Path) -> None:
    many = (("count", "INT64", [1], integers(40)), ("chunk_size", "INT64", [1], integers(1)))
    large, dead = (request_of(f"{name}.stream", SEED, *many) for name in ("large", "wide"))
    options = ("--models", "large,wide", "--instances", "1", "--max-queue-size", "3")
    with run_server(repository, *options) as running:
        errors = answers_side_by_side(running.url, large)
        assert {type(error) for error in errors if error} == {Busy}
        tritonserver = psutil.Process(running.triton_pid())
        supervisor = psutil.Process(running.process.pid)
        supervisor.suspend()  # it would start the server again
        try:
            (wide,) = running.stub_pids_of("wide")
            os.kill(wide, signal.SIGKILL)
            assert type(answer(running.url, dead)) is ServerGone
            with ExitStack() as stack:  # of several, one is not drawn when the signal comes
                streams = [stack.enter_context(open_stream(running.url, large)) for _ in range(4)]
                next(streams[0])
                tritonserver.terminate()
                errors = [error_in(messages, running.url) for messages in streams]
                assert Draining in map(type, errors)
        finally:
            supervisor.resume()


def answers_side_by_side(url: str, request: Any) -> list[LatentryError | None]:
    errors: list[LatentryError | None] = []
    threads = [
        threading.Thread(target=lambda: errors.append(answer(url, request))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_stream_is_not_refused_by_its_own_chunks(repository: Path) -> None:
    options = ("--models", "large", "--instances", "1", "--queue-delay-us", "20000")
    for limit in ("1", "2"):
        with (
            run_server(repository, *options, "--max-queue-size", limit) as running,
            Client(running.url) as client,
        ):
            assert sum(map(len, client.stream("large", seeds=range(60), chunk_size=1))) == 60
