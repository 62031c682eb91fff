"""The client for asyncio; the same calls with the same arguments as :class:`Client`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from latentry.clients.base import ClientBase, check_transport_is_alone
from latentry.clients.client import PARTS_IN_FLIGHT
from latentry.clients.results import (
    GenerateResult,
    Health,
    StreamChunk,
    health_from_names,
    result_from_replies,
)
from latentry.clients.retry import (
    RETRIED,
    UNSET,
    Deadline,
    Retries,
    Unset,
    health_deadline,
)
from latentry.clients.samples import (
    MAX_RESULT_BYTES,
    CallerArguments,
    Seeds,
    check_chunk_size,
    samples_from_arguments,
    unary_requests,
)
from latentry.clients.streams import StreamCursor
from latentry.clients.transports.threaded import async_transport_from_any
from latentry.contract.errors import LatentryError, TimedOut
from latentry.contract.spec import check_name
from latentry.contract.transport import AsyncTransport, ModelInfo, Reply, Transport
from latentry.contract.wire import Arrays

T = TypeVar("T")


class AsyncClient(ClientBase):
    """Asks a Latentry server for images, from asyncio.

    One client holds one connection and belongs to one event loop, and to the next one where that
    has ended; forked and pickled it is as :class:`Client`. Cancelling a task that waits for
    ``generate`` abandons the answer; the server is not told.

    Example::

        async with AsyncClient() as client:
            result = await client.generate("digits", seeds=range(4), class_label=7)
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float | None = 120.0,
        retry_for_s: float | None = None,
        tls: bool | str | PathLike[str] | tuple[str | None, str, str] = False,
        headers: Mapping[str, str] | None = None,
        transport: AsyncTransport | Transport | None = None,
    ) -> None:
        """Make a client; arguments as for :class:`Client`.

        ``transport`` may also be a synchronous one, which is then used from threads.

        Raises:
            BadRequest: An argument is not allowed.
        """
        super().__init__(timeout_s, retry_for_s)
        if transport is None:
            # Here, because importing gRPC takes longer than everything else together.
            from latentry.clients.transports.grpc_transport import AsyncGrpcTransport

            transport = AsyncGrpcTransport(url, tls=tls, headers=headers)
        else:
            check_transport_is_alone(url, tls, headers)
        self._transport: AsyncTransport = async_transport_from_any(transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give up the connection."""
        await self._transport.close()

    async def generate(
        self,
        model: str,
        *,
        seeds: Seeds | None = None,
        n: SupportsIndex | None = None,
        format: str = "raw",
        resize: bool = False,
        timeout_s: float | None | Unset = UNSET,
        **inputs: Any,
    ) -> GenerateResult:
        """Draw images; see :meth:`Client.generate`."""
        arguments = CallerArguments(seeds, n, inputs, format, resize)
        deadline = self._deadline(timeout_s)
        try:
            async with asyncio.timeout(deadline.left_s()):
                return await self._generate(model, arguments, deadline)
        except TimeoutError:
            raise deadline.error() from None

    async def stream(
        self,
        model: str,
        *,
        seeds: Seeds | None = None,
        n: SupportsIndex | None = None,
        format: str = "raw",
        resize: bool = False,
        chunk_size: SupportsIndex | None = None,
        resume: bool = False,
        **inputs: Any,
    ) -> AsyncGenerator[StreamChunk, None]:
        """Draw images and give them in chunks as they come; see :meth:`Client.stream`.

        To leave early, close it: ``async with contextlib.aclosing(client.stream(...)) as chunks``.
        """
        arguments = CallerArguments(seeds, n, inputs, format, resize)
        size = check_chunk_size(chunk_size)
        info = await self._info(model, self._deadline(UNSET))
        cursor = StreamCursor(samples_from_arguments(info, arguments), size)
        retries = Retries(self._policy, Deadline(None))
        while not cursor.finished:
            replies: AsyncIterator[Reply] | None = None
            try:
                with self._deadline(UNSET).kept():
                    cursor.check_model(await self._transport.model_info(model))
                replies = self._transport.stream(model, cursor.requests())
                async for reply in replies:
                    yield cursor.take(reply)
                    retries = Retries(self._policy, Deadline(None))
                cursor.check_finished()
            except LatentryError as error:
                await asyncio.sleep(cursor.delay_s(error, retries, resume=resume))
            finally:
                if isinstance(replies, AsyncGenerator):
                    await replies.aclose()

    async def models(self) -> list[str]:
        """Return the names of the generators being served; see :meth:`Client.models`."""
        return await self._retried(self._transport.model_names, self._deadline(UNSET))

    async def info(self, model: str) -> ModelInfo:
        """Return what is being served under ``model``; see :meth:`Client.info`."""
        return await self._info(model, self._deadline(UNSET))

    async def health(self) -> Health:
        """Return whether the server is ready, and the reason where it is not; never raises."""
        try:
            with health_deadline(self._timeout_s).kept():
                ready = await self._transport.ready()
                return health_from_names(ready, await self._transport.model_names())
        except LatentryError as error:
            return Health(False, str(error), error=error)

    async def _generate(
        self, model: str, arguments: CallerArguments, deadline: Deadline
    ) -> GenerateResult:
        info = await self._info(model, deadline)
        samples = samples_from_arguments(info, arguments, max_bytes=MAX_RESULT_BYTES)
        replies = await self._infer_all(model, unary_requests(samples), deadline)
        return result_from_replies(samples, await self._info_again(info, deadline), replies)

    async def _info(self, model: str, deadline: Deadline) -> ModelInfo:
        check_name(model)
        return await self._retried(lambda: self._transport.model_info(model), deadline)

    async def _info_again(self, info: ModelInfo, deadline: Deadline) -> ModelInfo:
        """Return what is served now; known already while the connection has stood."""
        try:
            with deadline.kept():
                return await self._transport.model_info(info.name)
        except (*RETRIED, TimedOut):
            return info  # the server went right after its last answer

    async def _retried(self, call: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        retries = Retries(self._policy, deadline)
        while True:
            try:
                with deadline.kept():
                    return await call()
            except RETRIED as error:
                await asyncio.sleep(retries.delay_s(error))

    async def _infer_all(
        self, model: str, requests: Sequence[Arrays], deadline: Deadline
    ) -> list[Reply]:
        slots = asyncio.Semaphore(PARTS_IN_FLIGHT)

        async def settle(request: Arrays) -> Reply:
            async with slots:
                return await self._retried(lambda: self._transport.infer(model, request), deadline)

        parts = [asyncio.ensure_future(settle(request)) for request in requests]
        try:
            return await asyncio.gather(*parts)
        finally:
            for part in parts:
                part.cancel()
