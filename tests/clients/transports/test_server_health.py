"""What a client says of the health of a server, and of what is none."""

import asyncio
import re
from typing import Any

import pytest
from arithmetic_server import ArithmeticServer
from drivers import Driver

from latentry.clients import ServerFault
from latentry.clients.transports.grpc_transport import AsyncGrpcTransport, GrpcTransport


def test_a_server_that_nobody_reaches_is_not_ready() -> None:
    transport = GrpcTransport("127.0.0.1:1")
    assert transport.ready() is False
    transport.close()
    assert asyncio.run(AsyncGrpcTransport("127.0.0.1:1").ready()) is False


def test_a_server_that_starts_is_not_ready(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    arithmetic_server.double.transport.is_ready = False
    (health,) = driver.run([lambda c: c.health()], arithmetic_server.url)
    assert (health.ready, health.reason) == (
        False,
        "the server answers, but not every model is ready",
    )


def test_health_of_nobody(driver: Driver) -> None:
    (health,) = driver.run([lambda c: c.health()], "127.0.0.1:1")
    assert not health
    assert "no answer from 127.0.0.1:1" in health.reason


def test_the_health_of_a_server_that_hangs(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    def hang(client: Any) -> None:
        arithmetic_server.double.hold_questions.clear()

    steps = [lambda c: c.models(), hang, lambda c: c.health()]
    health = driver.run(steps, arithmetic_server.url, timeout_s=0.2)[-1]
    assert not health
    assert "took the question and did not answer" in health.reason


@pytest.mark.parametrize(
    ("text", "ready", "reason"),
    [
        ("[UNAVAILABLE] the server is shutting down", False, "is shutting down or starting"),
        ("Request for unknown model: 'digits.stream' is not found", True, "serving digits"),
        ("[request id: 1] Exceeds maximum queue size", True, "serving digits"),
        ("", True, "serving digits"),  # an answer, to a request for nothing
        ("Stub process 'digits.stream_0_0' is not healthy.", False, "is not healthy"),
    ],
)
def test_health_is_what_the_stream_model_says(
    arithmetic_server: ArithmeticServer, driver: Driver, text: str, ready: bool, reason: str
) -> None:
    arithmetic_server.double.stream_error = text
    (health,) = driver.run([lambda c: c.health()], arithmetic_server.url)
    assert (health.ready, reason in health.reason) == (ready, True)


def test_health_keeps_what_a_question_ended_with(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    (health,) = driver.run([lambda c: c.health()], arithmetic_server.url, tls=True)
    assert isinstance(health.error, ServerFault)
    assert str(health.error) == health.reason


def test_the_health_of_a_stream_model_that_hangs(
    arithmetic_server: ArithmeticServer, driver: Driver
) -> None:
    arithmetic_server.double.hold_streams.clear()
    (health,) = driver.run([lambda c: c.health()], arithmetic_server.url, timeout_s=0.5)
    assert not health
    assert re.search(r"within 0\.[0-5] s", health.reason)  # what the questions before have left
