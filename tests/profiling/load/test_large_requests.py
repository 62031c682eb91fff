"""Requests of any size: pictures that go in, and several megabytes in one batch."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from running_server import RunningServer
from tritonclient.grpc import service_pb2

from latentry.clients import Client
from latentry.clients.transports import codec
from latentry.contract.errors import BadRequest
from latentry.profiling.load.schedules import run_closed, run_open
from latentry.profiling.load.target import TritonTarget
from latentry.profiling.load.unary_calls import UnaryCalls

pytestmark = pytest.mark.server

SHAPES = {"restyled": (256, 256, 3), "megabyte": (512, 512, 4)}


@pytest.fixture
def calls(varied_server: RunningServer) -> Iterator[UnaryCalls]:
    calls = UnaryCalls(varied_server.url)
    yield calls
    calls.close()


def photos(
    model: str, count: int, seed: int = 0
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    shape = (count, *SHAPES[model])
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def request(model: str, count: int, seed: int = 0) -> bytes:
    inputs = {"photo": photos(model, count, seed)}
    serialized: bytes = codec.infer_request(model, inputs).SerializeToString()
    return serialized


def images(answer: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    reply = codec.reply_from_response(service_pb2.ModelInferResponse.FromString(answer))
    return reply.outputs["image"]


@pytest.mark.parametrize(("model", "count"), [("restyled", 1), ("megabyte", 1), ("megabyte", 8)])
def test_an_answer_is_the_one_that_a_client_gets(
    varied_server: RunningServer, calls: UnaryCalls, model: str, count: int
) -> None:
    assert len(request(model, count)) > count * np.prod(SHAPES[model])
    with Client(varied_server.url) as client:
        expected = client.generate(model, photo=photos(model, count)).images
    assert (images(calls.ask(request(model, count))) == expected).all()


def test_large_and_small_requests_are_under_way_at_once(calls: UnaryCalls) -> None:
    answers: dict[int, bytes] = {}
    everything = threading.Event()

    def start(place: int) -> None:
        def done(error: Exception | None, answer: bytes) -> None:
            assert error is None
            answers[place] = answer
            if len(answers) == 48:
                everything.set()

        calls.start(request(*KINDS[place % 3], seed=place), done)

    for place in range(48):
        start(place)
    assert everything.wait(300)
    for place in (0, 1, 2, 46, 47):
        assert answers[place] == calls.ask(request(*KINDS[place % 3], seed=place))


KINDS = (("restyled", 1), ("megabyte", 3), ("restyled", 5))


def test_a_refusal_of_a_large_request_is_told(calls: UnaryCalls) -> None:
    inputs = {"photo": photos("megabyte", 4)[:, :256]}
    message = codec.infer_request("megabyte", inputs).SerializeToString()
    with pytest.raises(BadRequest, match="photo"):
        calls.ask(message)
    assert images(calls.ask(request("restyled", 1))).shape == (1, 256, 256, 3)


@pytest.mark.parametrize(("model", "batch"), [("restyled", 1), ("restyled", 4), ("megabyte", 2)])
def test_a_load_of_pictures_is_put_on_a_model(
    varied_server: RunningServer, model: str, batch: int
) -> None:
    with TritonTarget(varied_server.url, model, batch=batch, payloads=6) as target:
        sent = {message for message, _ in target._pairs}
        opened = run_open(target, rate=20, duration_s=0.5, warm_up_s=0)
        closed = run_closed(target, outstanding=4, duration_s=0.3, warm_up_s=0)
    assert len(sent) == 6
    assert not opened.errors
    assert not closed.errors
    assert opened.completed == opened.sent > 3
    assert closed.completed > 0
    assert target.answer_bytes > batch * np.prod(SHAPES[model])


def test_what_is_kept_of_large_requests_is_bounded(varied_server: RunningServer) -> None:
    with TritonTarget(varied_server.url, "megabyte", batch=8) as target:
        kept = sum(len(message) + len(answer) for message, answer in target._pairs)
    assert len(target._pairs) == 8
    assert kept < 2 * 64 * 2**20 + 10**6
