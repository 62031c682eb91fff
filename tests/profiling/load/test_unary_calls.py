import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from running_server import RunningServer
from tritonclient.grpc import service_pb2

from latentry.clients.transports import codec
from latentry.contract.errors import BadRequest, LatentryError, NotFound, ServerFault, ServerGone
from latentry.profiling.load.unary_calls import UnaryCalls, _message_from_trailers

pytestmark = pytest.mark.server


@pytest.fixture
def calls(triton: RunningServer) -> Iterator[UnaryCalls]:
    calls = UnaryCalls(triton.url)
    yield calls
    calls.close()


def request(model: str, seeds: list[int], label: int = 3) -> bytes:
    inputs = {"seed": np.array(seeds, np.int64).reshape(-1, 1)}
    if model == "digits":
        inputs["class_label"] = np.full((len(seeds), 1), label, np.int64)
    serialized: bytes = codec.infer_request(model, inputs).SerializeToString()
    return serialized


def images(answer: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    reply = codec.reply_from_response(service_pb2.ModelInferResponse.FromString(answer))
    return reply.outputs["image"]


def test_an_answer_is_the_one_that_grpc_gives(triton: RunningServer, calls: UnaryCalls) -> None:
    import grpc

    message = request("digits", [1, 2, 3])
    with grpc.insecure_channel(triton.url) as channel:
        bare = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert (images(calls.ask(message)) == images(bare(message))).all()


def test_an_answer_larger_than_a_frame_is_whole(calls: UnaryCalls) -> None:
    assert images(calls.ask(request("large", list(range(16))))).shape == (16, 256, 256, 3)


def test_many_calls_are_under_way_at_once(calls: UnaryCalls) -> None:
    answers: dict[int, bytes] = {}
    everything = threading.Event()

    def start(seed: int) -> None:
        def done(error: Exception | None, answer: bytes) -> None:
            assert error is None
            answers[seed] = answer
            if len(answers) == 300:
                everything.set()

        calls.start(request("digits", [seed]), done)

    for seed in range(300):
        start(seed)
    assert everything.wait(120)
    for seed in (0, 150, 299):
        assert answers[seed] == calls.ask(request("digits", [seed]))


def test_the_servers_refusals_are_latentrys_errors(calls: UnaryCalls) -> None:
    with pytest.raises(BadRequest, match="class_label in row 0 is 11; it takes an integer from 0"):
        calls.ask(request("digits", [1], label=11))
    with pytest.raises(NotFound, match="unknown model: 'nope'"):
        calls.ask(request("nope", [1]))
    assert images(calls.ask(request("digits", [1]))).shape == (1, 32, 32, 1)


def test_an_answer_before_the_whole_request_takes_back_the_rest() -> None:
    """As of a server that refuses by the headers alone: it reads on, and gets no more of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls = UnaryCalls(f"127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        refusal = _trailers(b"@\x0bgrpc-status\x013@\x0cgrpc-message\x02no")
        threading.Timer(0.1, connection.sendall, (refusal,)).start()
        with pytest.raises(BadRequest, match="no"):
            calls.ask(bytes(10**6), timeout_s=60)
        # A stream of another request has the window that is left: none, so that it waits.
        calls.start(b"x" * 10, lambda *_: None)
        reset = struct.pack(">IBBI", 4, 3, 0, 1)[1:] + struct.pack(">I", 8)
        received = b""
        while reset not in received:
            received += connection.recv(2**18)
        sent = received.partition(reset)[0]
        assert len(sent) < 2**16 + 1000
        connection.close()
        calls.close()


def test_nobody_listens() -> None:
    with pytest.raises(ServerGone, match="no answer from 127.0.0.1:1"):
        UnaryCalls("127.0.0.1:1")


def test_a_lost_connection_ends_every_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls = UnaryCalls(f"127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        errors: list[Exception | None] = []
        calls.start(b"anything", lambda error, _: errors.append(error))
        connection.close()
        calls.close()
        calls.start(b"anything", lambda error, _: errors.append(error))
    assert [type(error) for error in errors] == [ServerGone, ServerGone]


def test_a_status_that_grpc_does_not_know_ends_the_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        calls = UnaryCalls(f"127.0.0.1:{listener.getsockname()[1]}")
        connection, _ = listener.accept()
        threading.Timer(0.1, connection.sendall, (_trailers(b"@\x0bgrpc-status\x0299"),)).start()
        with pytest.raises(LatentryError):
            calls.ask(b"anything", timeout_s=60)
        # Nor does an answer that cannot be read at all leave anybody waiting.
        broken = b"@\x0bgrpc-status\x0213@\x0cgrpc-message\x7f"
        threading.Timer(0.1, connection.sendall, (_trailers(broken, 3),)).start()
        with pytest.raises(ServerFault, match="sent what is not understood"):
            calls.ask(b"anything", timeout_s=60)
        connection.close()
        calls.close()


@pytest.mark.parametrize("length", [0, 5, 126, 127, 128, 300])
def test_a_message_of_any_length_is_read(length: int) -> None:
    text = "x" * length
    size = bytes([length]) if length < 127 else b"\x7f" + _varint(length - 127)
    block = b"@\x0bgrpc-status\x013@\x0cgrpc-message" + size + text.encode() + b"@\x03abc\x01d"
    assert _message_from_trailers(bytearray(block)) == text


def _trailers(block: bytes, stream: int = 1) -> bytes:
    return len(block).to_bytes(3, "big") + b"\x01\x05" + stream.to_bytes(4, "big") + block


def _varint(value: int) -> bytes:
    groups = []
    while value >= 128:
        groups.append(value % 128 + 128)
        value //= 128
    return bytes([*groups, value])
