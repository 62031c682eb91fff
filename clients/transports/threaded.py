"""From synchronous transports and futures to asyncio."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar, cast

from latentry.clients.streams import close_replies
from latentry.contract.transport import AsyncTransport, ModelInfo, Reply, Transport
from latentry.contract.wire import Arrays

T = TypeVar("T")


def async_transport_from_any(transport: AsyncTransport | Transport) -> AsyncTransport:
    """Return ``transport`` if it is asynchronous, or a synchronous one used from threads."""
    if inspect.iscoroutinefunction(transport.ready):
        return cast(AsyncTransport, transport)
    return _ThreadedTransport(cast(Transport, transport))


async def answer_of(future: "asyncio.Future[T]") -> T:
    """Wait for ``future`` so that cancelling the wait leaves the future alone."""
    future.add_done_callback(_look_at)
    await asyncio.wait({future})
    return future.result()


def _look_at(future: "asyncio.Future[T]") -> None:
    """Read the outcome: the error of an abandoned answer is nobody's."""
    if not future.cancelled():
        future.exception()


class _ThreadedTransport:
    """A synchronous transport for asyncio."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def ready(self) -> bool:
        return await asyncio.to_thread(self._transport.ready)

    async def model_names(self) -> list[str]:
        return await asyncio.to_thread(self._transport.model_names)

    async def model_info(self, model: str) -> ModelInfo:
        return await asyncio.to_thread(self._transport.model_info, model)

    async def infer(self, model: str, inputs: Arrays) -> Reply:
        return await answer_of(asyncio.wrap_future(self._transport.infer(model, inputs)))

    async def stream(self, model: str, requests: Iterator[Arrays]) -> AsyncIterator[Reply]:
        replies = self._transport.stream(model, requests)
        step = asyncio.ensure_future(asyncio.to_thread(next, replies, None))
        try:
            while (reply := await answer_of(step)) is not None:
                yield reply
                step = asyncio.ensure_future(asyncio.to_thread(next, replies, None))
        finally:
            # A generator cannot be closed while a thread is inside it.
            await asyncio.wait({step})
            await asyncio.to_thread(close_replies, replies)

    async def close(self) -> None:
        await asyncio.to_thread(self._transport.close)
