import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from arithmetic_server import ArithmeticServer
from doubles import InfoOf
from drivers import Driver, Step, generate, stream
from running_server import wait_until
from tritonclient.grpc import service_pb2_grpc

from latentry.clients import (
    AsyncClient,
    BadRequest,
    Busy,
    Client,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    ServerFault,
    ServerGone,
    TimedOut,
)
from latentry.clients.transports import grpc_transport

NO_DEADLINE_S = 1e6


def test_images_headers_and_no_deadline(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    expected = Client(transport=arithmetic_server.double.transport).generate(
        "digits", seeds=range(30), class_label=1
    )
    (result, png, _) = driver.run(
        [
            generate(seeds=range(30)),
            generate(seeds=range(30), format="png"),
            lambda client: client.health(),
        ],
        arithmetic_server.url,
        headers={"X-Token": "let me in"},
    )
    assert np.array_equal(result.images, expected.images)
    assert np.array_equal(png.images, expected.images)
    assert result.engine_class == "numpy-1"
    assert all(entry["x-token"] == "let me in" for entry in arithmetic_server.double.metadata)
    assert all(left is None or left > NO_DEADLINE_S for left in arithmetic_server.double.deadlines)


def test_a_model_is_asked_about_once(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    driver.run([generate(), generate(), lambda c: c.health(), generate()], arithmetic_server.url)
    assert arithmetic_server.double.calls.count("config") == 1
    assert arithmetic_server.double.calls.count("infer") == 3


def test_a_reply_of_another_version_is_noticed(
    arithmetic_server: ArithmeticServer, driver: Driver, info: InfoOf
) -> None:
    def replace(client: Any) -> None:
        arithmetic_server.double.transport.infos["digits"] = info("digits", "2")

    _, _, result = driver.run([generate(), replace, generate()], arithmetic_server.url)
    assert (result.version, result.model_digest) == ("2", "digest-2")


def test_a_server_that_came_back_is_asked_again(
    start_server: Callable[..., ArithmeticServer], driver: Driver, info: InfoOf
) -> None:
    first = start_server()

    def replace(client: Any) -> None:
        first.stop()
        second = start_server(first.port)
        second.double.transport.infos["digits"] = info("digits", "1", max_batch_size=2)

    def ask(client: Any) -> Any:
        return client.info("digits")

    before, _, after = driver.run([ask, replace, ask], first.url, retry_for_s=60)
    assert (before.max_batch_size, after.max_batch_size) == (8, 2)


def test_models_info_and_health(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    names, info, health = driver.run(
        [lambda c: c.models(), lambda c: c.info("digits"), lambda c: c.health()],
        arithmetic_server.url,
    )
    assert names == ["digits", "mapped", "plain"]
    assert info.spec.class_input.classes == ("zero", "one", "two")
    assert health.reason == "serving digits, mapped, plain"


def test_unknown_models_and_strangers(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    with pytest.raises(NotFound, match="'cats' is not being served; these are: digits, mapped"):
        driver.run([lambda c: c.generate("cats", seeds=1)], arithmetic_server.url)
    with pytest.raises(NotFound, match="resnet is not a Latentry generator"):
        driver.run([lambda c: c.info("resnet")], arithmetic_server.url)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", Busy),
        ("UNAVAILABLE", "Request for unknown model: 'x' has no available versions", Draining),
        ("INTERNAL", "[UNAVAILABLE] the server is shutting down", Draining),
        ("INTERNAL", "[INTERNAL] NaN or infinity in the output for seeds [1]", InvalidOutput),
        ("INTERNAL", "Stub process 'x_0' is not healthy.", ServerGone),
        ("INTERNAL", "boom", ServerFault),
    ],
)
def test_faults_arrive_as_errors(
    arithmetic_server: ArithmeticServer,
    driver: Driver,
    code: str,
    text: str,
    expected: type[LatentryError],
) -> None:
    def fail(client: Any) -> None:
        arithmetic_server.double.abort = (grpc.StatusCode[code], text)

    def fail_in_stream(client: Any) -> None:
        arithmetic_server.double.stream_error = text

    for how, step in ((fail, generate()), (fail, stream(20)), (fail_in_stream, stream(20))):
        arithmetic_server.double.abort = arithmetic_server.double.stream_error = None
        with pytest.raises(expected, match=r".") as error:
            driver.run([lambda c: c.info("digits"), how, step], arithmetic_server.url)
        if isinstance(error.value, InvalidOutput):
            assert error.value.seeds == (1,)


def test_an_error_inside_a_stream_ends_the_call(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    arithmetic_server.double.stream_error = "[INVALID_ARGUMENT] class_label in row 0 is 10"

    def stream_ended(client: Any) -> bool:
        return arithmetic_server.double.stream_ended.wait(5)

    def refused(client: Any) -> Any:
        chunks = client.stream("plain", seeds=range(5000))
        return _refused_async(chunks) if hasattr(chunks, "__aiter__") else _refused(chunks)

    _, ended = driver.run([refused, stream_ended], arithmetic_server.url)
    assert ended
    assert arithmetic_server.double.continues == [False]


def _refused(chunks: Any) -> None:
    with pytest.raises(BadRequest, match="^class_label in row 0 is 10$"):
        list(chunks)


async def _refused_async(chunks: Any) -> None:
    with pytest.raises(BadRequest, match="^class_label in row 0 is 10$"):
        [chunk async for chunk in chunks]


def test_a_refusal_has_the_servers_words(arithmetic_server: ArithmeticServer) -> None:
    with Client(arithmetic_server.url) as client:
        future = client._transport.infer("plain", {"seed": np.array([[-1]])})
        with pytest.raises(BadRequest, match="^seed in row 0 is -1"):
            future.result(60)


def test_streams(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    expected = Client(transport=arithmetic_server.double.transport).generate(
        "plain", seeds=range(5000)
    )
    (chunks,) = driver.run([stream(5000)], arithmetic_server.url)
    assert np.array_equal(np.concatenate([c.images for c in chunks]), expected.images)
    assert arithmetic_server.double.calls.count("stream") == 1
    # With this header an error kills Triton 2.51.
    assert not any(
        "triton_grpc_error" in metadata for metadata in arithmetic_server.double.metadata
    )
    assert arithmetic_server.double.continues == [False, True]


def test_ipv6(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    with futures.ThreadPoolExecutor(4) as pool:
        on_ipv6 = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            arithmetic_server.double, on_ipv6
        )
        try:
            port = on_ipv6.add_insecure_port("[::1]:0")
        except RuntimeError:
            pytest.skip("this machine has no IPv6")
        on_ipv6.start()
        names, chunks = driver.run([lambda c: c.models(), stream(20)], f"[::1]:{port}")
        on_ipv6.stop(None).wait()
    assert names == ["digits", "mapped", "plain"]
    assert sum(map(len, chunks)) == 20


def test_leaving_a_stream_cancels_it(arithmetic_server: ArithmeticServer) -> None:
    with Client(arithmetic_server.url) as client:
        chunks = client.stream("plain", seeds=range(4000))
        next(chunks)
        chunks.close()
        assert arithmetic_server.double.stream_ended.wait(60)
        assert len(client.generate("plain", seeds=1)) == 1


def test_streams_that_were_left_keep_no_thread(arithmetic_server: ArithmeticServer) -> None:
    with Client(arithmetic_server.url) as client:
        client.models()
        before = threading.active_count()
        for _ in range(20):
            next(client.stream("plain", seeds=range(4000)))
        wait_until(lambda: threading.active_count() <= before + 8)  # those of the server's pool


def test_leaving_a_stream_cancels_it_in_asyncio(arithmetic_server: ArithmeticServer) -> None:
    async def run() -> tuple[bool, int]:
        async with AsyncClient(arithmetic_server.url) as client:
            async with aclosing(client.stream("plain", seeds=range(4000))) as chunks:
                async for _ in chunks:
                    break
            ended = await asyncio.to_thread(arithmetic_server.double.stream_ended.wait, 60)
            return ended, len(await client.generate("plain", seeds=1))

    assert asyncio.run(run()) == (True, 1)


def stop_soon(arithmetic_server: ArithmeticServer, delay_s: float = 0.2) -> None:
    threading.Timer(delay_s, arithmetic_server.stop).start()


def test_a_server_that_dies_is_one_error_soon(
    start_server: Callable[..., ArithmeticServer], driver: Driver
) -> None:
    server = start_server()

    def hold(client: Any) -> None:
        server.double.hold.clear()
        stop_soon(server)

    start = time.monotonic()
    with pytest.raises((ServerGone, Draining), match="retry_for_s=30"):
        driver.run([lambda c: c.info("digits"), hold, generate()], server.url)
    assert time.monotonic() - start < 5  # on a quiet machine one second


def test_a_stream_of_a_server_that_dies_says_where_to_go_on(
    start_server: Callable[..., ArithmeticServer], driver: Driver
) -> None:
    server = start_server()

    def die_in_the_middle(client: Any) -> None:
        server.double.hold.clear()

        def die() -> None:
            wait_until(lambda: server.double.continues)
            server.stop()

        threading.Thread(target=die).start()

    with pytest.raises((ServerGone, Draining), match=r"."):
        driver.run([lambda c: c.info("plain"), die_in_the_middle, stream(4000)], server.url)


def fail_stream(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "[UNAVAILABLE] the server is shutting down")


@pytest.mark.parametrize(
    ("end", "words"), [(fail_stream, "shutting down"), (lambda _: None, "ended the stream early")]
)
def test_a_stream_that_ends_between_two_of_its_requests(
    arithmetic_server: ArithmeticServer,
    driver: Driver,
    end: Callable[[grpc.ServicerContext], None],
    words: str,
) -> None:
    arithmetic_server.double.end_stream = end

    def read(client: Any) -> Any:
        chunks = client.stream("plain", seeds=range(5000))
        return _read_async(chunks) if hasattr(chunks, "__aiter__") else _read(chunks)

    def _read(chunks: Any) -> None:
        for _ in chunks:
            assert arithmetic_server.double.stream_ended.wait(60)

    async def _read_async(chunks: Any) -> None:
        async for _ in chunks:
            assert await asyncio.to_thread(arithmetic_server.double.stream_ended.wait, 60)
            await asyncio.sleep(0.2)  # the end may be known by the next request, or only after it

    with pytest.raises(ServerGone, match=words) as gone:
        driver.run([read], arithmetic_server.url)
    assert gone.value.resume_at == 8


def test_a_malformed_answer_is_the_servers_fault(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    arithmetic_server.double.answers_malformed = True
    with pytest.raises(ServerFault, match="the server's answer lacks the contents of an output"):
        driver.run([generate()], arithmetic_server.url)


def test_a_stream_goes_on_at_the_next_server(start_server: Callable[..., ArithmeticServer]) -> None:
    first = start_server()
    expected = Client(transport=first.double.transport).generate("plain", seeds=range(300))
    images = []
    with Client(first.url, retry_for_s=60) as client:
        for chunk in client.stream("plain", seeds=range(300), chunk_size=4, resume=True):
            images.append(chunk.images)
            if len(images) == 3:
                first.stop()
                start_server(first.port)
    assert np.array_equal(np.concatenate(images), expected.images)


def test_nobody_there_is_an_error_soon(driver: Driver) -> None:
    start = time.monotonic()
    with pytest.raises(ServerGone, match="no answer from 127.0.0.1:1 .*`latentry serve`"):
        driver.run([generate()], "127.0.0.1:1")
    assert time.monotonic() - start < 5  # on a quiet machine one second


def test_retry_for_s_waits_for_a_server(
    start_server: Callable[..., ArithmeticServer], driver: Driver
) -> None:
    first = start_server()
    first.stop()
    threading.Timer(0.5, start_server, [first.port]).start()
    (result,) = driver.run([generate()], first.url, retry_for_s=60)
    assert len(result) == 3


def give_up(driver: Driver) -> Step:
    """Return the step that does not wait for an answer; it returns the error."""

    def wait(client: Any) -> LatentryError:
        with pytest.raises(TimedOut, match=r"timeout_s=0\.1") as error:
            client.generate("plain", seeds=1, timeout_s=0.1)
        return error.value

    async def wait_in_asyncio(client: Any) -> LatentryError:
        with pytest.raises(TimedOut, match=r"timeout_s=0\.1") as error:
            await client.generate("plain", seeds=1, timeout_s=0.1)
        return error.value

    return wait_in_asyncio if driver.asynchronous else wait


def test_a_timeout_does_not_cancel_the_call(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    arithmetic_server.double.hold.clear()

    def see_what_becomes_of_it(client: Any) -> None:
        wait_until(lambda: "infer" in arithmetic_server.double.calls)
        arithmetic_server.double.hold.set()
        wait_until(lambda: arithmetic_server.double.still_wanted == [True])

    steps = [lambda c: c.info("plain"), give_up(driver), see_what_becomes_of_it]
    _, error, _ = driver.run(steps, arithmetic_server.url)
    assert isinstance(error, TimedOut)


def test_closing_gives_abandoned_answers_a_moment(
    arithmetic_server: ArithmeticServer, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton does not bear many that are cancelled."""
    monkeypatch.setattr(grpc_transport, "CLOSE_GRACE_S", 60 * grpc_transport.CLOSE_GRACE_S)
    arithmetic_server.double.hold.clear()

    def answer_soon(client: Any) -> None:
        wait_until(lambda: "infer" in arithmetic_server.double.calls)
        threading.Timer(0.3, arithmetic_server.double.hold.set).start()

    driver.run([lambda c: c.info("plain"), give_up(driver), answer_soon], arithmetic_server.url)
    assert arithmetic_server.double.still_wanted == [True]


QUESTIONS = {
    "models": lambda c: c.models(),
    "info": lambda c: c.info("plain"),
    "generate": lambda c: c.generate("plain", seeds=1),
    "stream": stream(20),
}


# A question may have what the one before it has left.
WITHIN = r"within (0\.[012] s|timeout_s=0\.2)"


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_keeps_timeout_s(
    arithmetic_server: ArithmeticServer, driver: Driver, question: str
) -> None:
    def hang(client: Any) -> None:
        arithmetic_server.double.hold_questions.clear()

    steps = [lambda c: c.models(), hang, QUESTIONS[question]]
    with pytest.raises(TimedOut, match=WITHIN):
        driver.run(steps, arithmetic_server.url, timeout_s=0.2)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_listener_that_is_silent(driver: Driver, question: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TimedOut, match=WITHIN):
            driver.run([QUESTIONS[question]], url, timeout_s=0.2)


def test_a_closed_client_says_so(arithmetic_server: ArithmeticServer, driver: Driver) -> None:
    def close(client: Any) -> Any:
        return client.aclose() if driver.asynchronous else client.close()

    for step in (generate(), stream(3), lambda c: c.models()):
        with pytest.raises(BadRequest, match="this client is closed"):
            driver.run([lambda c: c.info("plain"), close, step], arithmetic_server.url)


def test_closing_gives_up_the_connection(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    def connected(_: object = None) -> bool:
        found = psutil.Process().net_connections("tcp")
        ends = {c.laddr.port for c in found if c.status == psutil.CONN_ESTABLISHED}
        return arithmetic_server.port in ends

    assert driver.run([lambda c: c.models(), connected], arithmetic_server.url)[-1]
    wait_until(lambda: not connected())
    assert driver.run([], arithmetic_server.url) == []  # one that was never opened


@pytest.mark.parametrize("what", ["pass", "client.models()", "next(client.stream('plain', n=99))"])
def test_a_client_that_is_not_closed_does_not_keep_the_interpreter(
    arithmetic_server: ArithmeticServer, what: str
) -> None:
    code = (
        f"from latentry.clients import Client; client = Client({arithmetic_server.url!r}); {what}"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], timeout=120, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")


INTERRUPTED = """
import sys
import grpc._channel
from latentry.clients import Client

start = grpc._channel._run_channel_spin_thread

def interrupted(state):
    grpc._channel._run_channel_spin_thread = start
    raise KeyboardInterrupt  # as Ctrl-C does between the call and the thread that would end it

with Client(sys.argv[1]) as client:
    grpc._channel._run_channel_spin_thread = interrupted
    client.health()
"""


def test_an_interrupt_in_the_midst_of_a_call_ends_the_program(
    arithmetic_server: ArithmeticServer,
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, arithmetic_server.url]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.stderr.endswith("KeyboardInterrupt\n"), ended.stderr
