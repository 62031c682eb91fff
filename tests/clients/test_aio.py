import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from arithmetic_server import FakeTransport
from doubles import InfoOf

from latentry.clients import (
    AsyncClient,
    AsyncTransport,
    BadRequest,
    Client,
    GenerateResult,
    InvalidOutput,
    LatentryError,
    ModelInfo,
    Reply,
    ServerGone,
    StreamChunk,
    TimedOut,
    Transport,
)
from latentry.clients.retry import time_for_question
from latentry.clients.streams import close_replies
from latentry.clients.transports.threaded import answer_of
from latentry.contract.wire import Arrays


class AsyncFake:
    """The fake transport with coroutines instead of futures."""

    def __init__(self, inner: FakeTransport) -> None:
        self.inner = inner

    async def ready(self) -> bool:
        return self.inner.ready()

    async def model_names(self) -> list[str]:
        return self.inner.model_names()

    async def model_info(self, model: str) -> ModelInfo:
        return self.inner.model_info(model)

    async def infer(self, model: str, inputs: Arrays) -> Reply:
        return await answer_of(asyncio.wrap_future(self.inner.infer(model, inputs)))

    async def stream(self, model: str, requests: Iterator[Arrays]) -> AsyncIterator[Reply]:
        replies = self.inner.stream(model, requests)
        try:
            for reply in replies:
                await asyncio.sleep(0)
                yield reply
        finally:
            close_replies(replies)

    async def close(self) -> None:
        self.inner.close()


async def until(condition: Callable[[], object]) -> None:
    """Let others run until ``condition`` holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(params=["asynchronous", "synchronous"])
def carrier(request: pytest.FixtureRequest, transport: FakeTransport) -> Transport | AsyncTransport:
    return AsyncFake(transport) if request.param == "asynchronous" else transport


@pytest.mark.parametrize("name", ["__init__", "generate", "stream", "models", "info", "health"])
def test_both_clients_take_the_same_arguments(name: str) -> None:
    def shape(kind: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(kind, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(Client) == shape(AsyncClient)


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(AsyncClient) - public(Client) == {"aclose"}
    assert public(Client) - public(AsyncClient) == {"close"}


def test_the_images_are_those_of_the_synchronous_client(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    expected = Client(transport=transport).generate("digits", seeds=range(50), class_label=1)

    async def run() -> tuple[GenerateResult, list[StreamChunk]]:
        async with AsyncClient(transport=carrier) as client:
            result = await client.generate("digits", seeds=range(50), class_label=1)
            chunks = [c async for c in client.stream("digits", seeds=range(50), class_label=1)]
            return result, chunks

    result, chunks = asyncio.run(run())
    assert np.array_equal(result.images, expected.images)
    assert np.array_equal(np.concatenate([c.images for c in chunks]), expected.images)
    assert transport.closed


def test_a_server_that_goes_right_after_its_last_answer_has_answered(
    carrier: Transport | AsyncTransport, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = transport.infer

    def draw_and_go(model: str, inputs: Arrays) -> Any:
        transport.question_faults = [ServerGone("gone")]
        return draw(model, inputs)

    monkeypatch.setattr(transport, "infer", draw_and_go)

    async def run() -> GenerateResult:
        async with AsyncClient(transport=carrier) as client:
            return await client.generate("plain", seeds=[4])

    assert asyncio.run(run()).info == transport.infos["plain"]
    assert transport.question_faults == []


def test_parts_come_back_in_order_and_four_at_a_time(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    transport.holds = True

    async def run() -> tuple[int, GenerateResult]:
        async with AsyncClient(transport=carrier) as client:
            task = asyncio.ensure_future(client.generate("plain", seeds=range(64)))
            await until(lambda: len(transport.held) == 4)
            await asyncio.sleep(0.05)  # for a fifth, which must not come
            under_way = len(transport.requests)
            transport.held.reverse()
            transport.let_go()
            return under_way, await task

    under_way, result = asyncio.run(run())
    assert under_way == 4
    assert np.array_equal(
        result.images, Client(transport=transport).generate("plain", seeds=range(64)).images
    )


def test_retries_and_giving_up(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def run() -> int:
        async with AsyncClient(transport=carrier) as client:
            transport.faults = [ServerGone("gone")] * 2
            assert len(await client.generate("plain", seeds=range(20))) == 20
            transport.requests.clear()
            transport.faults = [ServerGone("gone")] * 99
            with pytest.raises(ServerGone, match="gone"):
                await client.generate("plain", seeds=range(8))
            return len(transport.requests)

    assert asyncio.run(run()) == 3


def test_an_error_of_one_part_is_the_calls_error(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def run() -> None:
        async with AsyncClient(transport=carrier) as client:
            transport.faults = [None, InvalidOutput("NaN", seeds=[9])]
            with pytest.raises(InvalidOutput, match="NaN"):
                await client.generate("plain", seeds=range(64))

    asyncio.run(run())


def test_a_timeout_and_a_cancelled_task_abandon_the_answer(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    transport.holds = True

    async def run() -> int:
        async with AsyncClient(transport=carrier) as client:
            with pytest.raises(TimedOut, match=r"timeout_s=0\.05"):
                await client.generate("plain", seeds=1, timeout_s=0.05)
            task = asyncio.ensure_future(client.generate("plain", seeds=1))
            await until(lambda: len(transport.held) == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            transport.let_go()
            return len(await client.generate("plain", seeds=1))

    assert asyncio.run(run()) == 1


def test_every_question_of_a_stream_keeps_timeout_s(
    carrier: Transport | AsyncTransport, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[float] = []
    answer = transport.model_info

    def model_info(model: str) -> ModelInfo:
        allowed.append(time_for_question(1e6))
        return answer(model)

    async def run() -> None:
        async with AsyncClient(transport=carrier, timeout_s=60) as client:
            assert [len(chunk) async for chunk in client.stream("plain", seeds=range(8))] == [8]

    monkeypatch.setattr(transport, "model_info", model_info)
    asyncio.run(run())
    before = len(allowed)
    assert list(map(len, Client(transport=transport, timeout_s=60).stream("plain", n=8))) == [8]
    assert len(allowed) == 2 * before > 2  # before the stream, and at its beginning
    assert max(allowed) <= 60


def test_what_is_not_allowed_is_not_asked(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    with pytest.raises(BadRequest, match="go with a server, not with transport"):
        AsyncClient("127.0.0.1:8001", transport=carrier)

    async def run() -> None:
        async with AsyncClient(transport=carrier) as client:
            for name in ("../plain", "Plain", ""):
                with pytest.raises(BadRequest, match=f"model name '{name}' is not allowed"):
                    await client.generate(name, seeds=1)
                with pytest.raises(BadRequest, match=f"model name '{name}' is not allowed"):
                    await client.info(name)

    transport.question_faults = [ServerGone("asked")]
    asyncio.run(run())


def test_closing_a_stream_early(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def run() -> None:
        client = AsyncClient(transport=carrier)
        async with client, aclosing(client.stream("plain", seeds=range(100))) as chunks:
            async for _ in chunks:
                break

    asyncio.run(run())
    assert transport.stream_log == ["request", "closed"]


def test_a_closed_stream_is_closed_though_somebody_keeps_it(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    kept: list[Iterator[Reply]] = []

    def keep(replies: Iterator[Reply]) -> Iterator[Reply]:
        kept.append(replies)
        return replies

    async def run() -> None:
        client = AsyncClient(transport=carrier)
        async with client, aclosing(client.stream("plain", seeds=range(100))) as chunks:
            await anext(chunks)

    transport.alter = keep
    asyncio.run(run())
    assert len(kept) == 1
    assert transport.stream_log[-1] == "closed"


def test_cancelling_the_task_of_a_stream(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def run() -> None:
        async with AsyncClient(transport=carrier) as client:

            async def read() -> None:
                async for _ in client.stream("plain", seeds=range(4000)):
                    await asyncio.sleep(0.01)

            task = asyncio.ensure_future(read())
            await until(lambda: transport.stream_log)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert transport.stream_log[-1] == "closed"


def test_broken_streams(carrier: Transport | AsyncTransport, transport: FakeTransport) -> None:
    async def run() -> list[StreamChunk]:
        async with AsyncClient(transport=carrier) as client:
            transport.stream_faults = [(2, ServerGone("gone"))]
            with pytest.raises(ServerGone, match="after 16 of 40 samples") as e:
                [c async for c in client.stream("plain", seeds=range(40))]
            assert e.value.resume_at == 16
            transport.stream_faults = [(2, TimedOut("late"))]
            with pytest.raises(ServerGone, match="after 16 of 40 samples: late") as e:
                [c async for c in client.stream("plain", seeds=range(40))]
            assert e.value.resume_at == 16
            transport.stream_faults = [(2, ServerGone("gone"))]
            return [c async for c in client.stream("plain", seeds=range(40), resume=True)]

    assert sum(map(len, asyncio.run(run()))) == 40


def test_a_resumption_that_fails_says_where_to_go_on(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def read(*question_faults: LatentryError) -> int:
        delivered = 0
        transport.stream_faults = [(2, ServerGone("gone"))]
        async with AsyncClient(transport=carrier) as client:
            async for chunk in client.stream("plain", seeds=range(40), resume=True):
                delivered += len(chunk)
                if delivered == 16:
                    transport.question_faults = list(question_faults)
        return delivered

    late = TimedOut("late")
    assert asyncio.run(read(late)) == 40
    with pytest.raises(ServerGone, match="after 16 of 40 samples: late") as e:
        asyncio.run(read(late, late, late))
    assert e.value.resume_at == 16


def test_models_info_and_health(
    carrier: Transport | AsyncTransport, transport: FakeTransport
) -> None:
    async def run() -> None:
        async with AsyncClient(transport=carrier) as client:
            assert await client.models() == ["digits", "mapped", "plain"]
            assert (await client.info("plain")).name == "plain"
            assert await client.health()
            transport.question_faults = [ServerGone("nobody there")]
            assert (await client.health()).reason == "nobody there"

    asyncio.run(run())


def test_a_replaced_model(
    carrier: Transport | AsyncTransport, transport: FakeTransport, info: InfoOf
) -> None:
    transport.infos["plain"] = info("plain", "2")
    transport.old_infos = [info("plain", "1")]

    async def run() -> GenerateResult:
        async with AsyncClient(transport=carrier) as client:
            return await client.generate("plain", seeds=1)

    assert asyncio.run(run()).model_digest == "digest-2"


def test_replies_are_data() -> None:
    assert Reply("1", {}) == Reply("1", {})
