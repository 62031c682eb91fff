"""Transports to a Triton server over gRPC.

Bursts of short deadlines or cancelled calls on unary requests crash Triton before 2.59, so unary
calls here carry no deadline and are never cancelled: who stops waiting abandons the answer. A
stream may be cancelled.

A transport connects with its first call, and once more in each process that is forked off (see
``grpc_library``). It is pickled as the arguments that it was made with.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np

from latentry.clients.retry import time_for_question
from latentry.clients.transports import codec
from latentry.clients.transports.channel import (
    Address,
    Tls,
    address_from_arguments,
    is_connected,
)
from latentry.clients.transports.codec import service_pb2
from latentry.clients.transports.connection import GrpcConnection, InfoCache
from latentry.clients.transports.grpc_library import keep_for_ever, let_go_after_fork
from latentry.clients.transports.rpc_errors import error_from_rpc, error_from_status
from latentry.clients.transports.threaded import answer_of
from latentry.contract.errors import BadRequest, Busy, LatentryError, NotFound, TimedOut, listed
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.wire import CONTINUES, STREAM_SUFFIX, TO_BE_CONTINUED, Arrays

# Questions about the server itself are answered at once or not at all.
QUESTION_TIMEOUT_S = 10.0
# Closing a channel cancels what is under way on it, so abandoned answers get a moment to come in.
CLOSE_GRACE_S = 1.0


# A request for nothing: a stream model refuses it, or says that the server is shutting down.
_NOTHING = {"count": np.array([0], np.int64)}
_REFUSED = (BadRequest, NotFound, Busy)


class GrpcTransport:
    """Carries requests to a Triton server; see :class:`latentry.contract.transport.Transport`."""

    def __init__(
        self, url: str | None = None, *, tls: Tls = False, headers: Mapping[str, str] | None = None
    ) -> None:
        """Make a transport; arguments as for :class:`latentry.clients.Client`.

        Raises:
            BadRequest: An argument is not allowed.
        """
        self._address = address_from_arguments(url, tls=tls, headers=headers)
        self._made_anew = partial(type(self), self._address.url, tls=tls, headers=headers)
        self._connection: GrpcConnection | None = None
        self._infos = InfoCache()
        self._lock = threading.Lock()
        self._closed = False
        self._open: set[Future[Any]] = set()
        let_go_after_fork(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_anew, ()

    def let_go(self) -> None:
        """Begin anew, in a forked process; a closed transport stays closed."""
        keep_for_ever(self._connection, self._open)
        self._connection = None
        self._infos = InfoCache()
        self._lock = threading.Lock()
        self._open = set()

    def ready(self) -> bool:
        """Whether the server answers and every model is ready; False when nobody answers.

        Raises:
            LatentryError: What keeps it from drawing: it is shutting down, or its stream model is
                dead or hangs. Triton itself says then that it is ready.
        """
        try:
            if not self._ask("ServerReady", service_pb2.ServerReadyRequest()).ready:
                return False
        except LatentryError:
            return False
        for model in self._ready_models(streams=True):
            with suppress(*_REFUSED):
                self._ask_stream(model)
        return True

    def model_names(self) -> list[str]:
        """Names of the models being served, sorted, without their stream models."""
        return self._ready_models(streams=False)

    def model_info(self, model: str) -> ModelInfo:
        """What is being served under ``model``; raises NotFound."""
        with self._lock:
            self._connected()
        if (known := self._infos.get(model)) is not None:
            return known
        try:
            config = self.model_config(model)
            metadata = self._ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        except NotFound as error:
            raise _not_found(model, self.model_names()) from error
        info = codec.info_from_config(config, metadata.versions)
        self._infos.put(info)
        return info

    def model_config(self, model: str) -> Any:
        """Triton's own configuration of ``model``, a ``ModelConfig``; raises NotFound."""
        return self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=model)).config

    def infer(self, model: str, inputs: Arrays) -> Future[Reply]:
        """Start one unary request; the future holds a Reply or a LatentryError."""

        def reply_from_response(response: Any) -> Reply:
            reply = codec.reply_from_response(response)
            self._infos.watch_reply(model, reply)
            return reply

        request = codec.infer_request(model, inputs)
        return self._start("ModelInfer", request, reply_from_response)

    def stream(self, model: str, requests: Iterator[Arrays]) -> Iterator[Reply]:
        """Send stream requests to ``model``, each once the one before it is answered in full."""
        process = os.getpid()
        with self._lock:
            connection = self._connected()
        outbox: SimpleQueue[Any] = SimpleQueue()
        messages = iter(outbox.get, None)
        call = connection.stub.ModelStreamInfer(messages, metadata=self._address.metadata)
        try:
            for request in _stream_requests(f"{model}{STREAM_SUFFIX}", requests):
                outbox.put(request)
                for message in call:
                    response = _response_from_stream(message, self._address)
                    if response.outputs:
                        yield codec.reply_from_response(response)
                        _check_process(process)
                    if codec.is_final(response):
                        break
            outbox.put(None)
            next(call, None)  # the status comes after the last answer
        except connection.grpc.RpcError as error:
            raise self._infos.watched(error_from_rpc(error, self._address.url)) from error
        except LatentryError as error:
            self._infos.watched(error)
            raise
        finally:
            if os.getpid() == process:
                outbox.put(None)
                call.cancel()
            else:
                keep_for_ever(call)

    def close(self) -> None:
        """Give up the connection; answers that nobody waits for get a second to come in."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
            still_open = tuple(self._open)
        if connection is not None:
            wait(still_open, timeout=CLOSE_GRACE_S)
            connection.close(within_s=CLOSE_GRACE_S)

    def _ready_models(self, *, streams: bool) -> list[str]:
        index = self._ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))
        return _names_from_index(index, streams=streams)

    def _ask_stream(self, model: str) -> None:
        """Ask a stream model for nothing; raises how it refuses, or why it does not answer.

        The wait is bounded here and not by gRPC: Triton bears few deadlines and cancels.
        """
        with self._lock:
            connection = self._connected()
        call = connection.stub.ModelStreamInfer(
            _stream_requests(model, iter([_NOTHING])), metadata=self._address.metadata
        )
        seconds, late = time_for_question(QUESTION_TIMEOUT_S), threading.Event()

        def give_up() -> None:
            late.set()
            call.cancel()

        waiting = threading.Timer(seconds, give_up)
        waiting.daemon = True
        waiting.start()
        try:
            messages = list(call)  # to its end, so that nothing is left to cancel
        except connection.grpc.RpcError as error:
            if late.is_set():
                raise self._no_answer(seconds) from error
            raise self._infos.watched(error_from_rpc(error, self._address.url)) from error
        finally:
            waiting.cancel()
        for message in messages:
            _response_from_stream(message, self._address)

    def _ask(self, method: str, request: Any) -> Any:
        answer = self._start(method, request, lambda response: response)
        seconds = time_for_question(QUESTION_TIMEOUT_S)
        try:
            return answer.result(seconds)
        except TimeoutError:
            raise self._no_answer(seconds) from None

    def _no_answer(self, seconds: float) -> TimedOut:
        with self._lock:
            return _no_answer(self._address, seconds, self._connection)

    def _start(self, method: str, request: Any, convert: Callable[[Any], Any]) -> Future[Any]:
        answer: Future[Any] = Future()

        def finish(call: Any) -> None:
            try:
                answer.set_result(convert(call.result()))
            except connection.grpc.RpcError as error:
                failure = self._infos.watched(error_from_rpc(error, self._address.url))
                failure.__cause__ = error
                answer.set_exception(failure)
            except Exception as error:  # whoever waits must hear of it, whatever it is
                answer.set_exception(error)

        with self._lock:
            connection = self._connected()
            self._open.add(answer)
            answer.add_done_callback(self._forget)
            ask = getattr(connection.stub, method).future
            call = ask(request, metadata=self._address.metadata)
        call.add_done_callback(finish)
        return answer

    def _connected(self) -> GrpcConnection:
        """Return the connection; the lock is held."""
        if self._closed:
            raise _closed()
        if self._connection is None:
            self._connection = GrpcConnection(self._address)
        self._infos.watch_channel(self._connection.channel)
        return self._connection

    def _forget(self, answer: Future[Any]) -> None:
        with self._lock:
            self._open.discard(answer)


class AsyncGrpcTransport:
    """The same for asyncio; the channel is opened in the event loop of the first call."""

    def __init__(
        self, url: str | None = None, *, tls: Tls = False, headers: Mapping[str, str] | None = None
    ) -> None:
        """Make a transport; arguments as for :class:`latentry.clients.AsyncClient`.

        Raises:
            BadRequest: An argument is not allowed.
        """
        self._address = address_from_arguments(url, tls=tls, headers=headers)
        self._made_anew = partial(type(self), self._address.url, tls=tls, headers=headers)
        self._connection: GrpcConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._infos = InfoCache()
        self._open: set[asyncio.Future[Any]] = set()
        let_go_after_fork(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_anew, ()

    def let_go(self) -> None:
        """Begin anew, in a forked process; a closed transport stays closed."""
        keep_for_ever(self._connection, self._loop, self._open)
        self._connection = self._loop = None
        self._infos = InfoCache()
        self._open = set()

    async def ready(self) -> bool:
        """See :meth:`GrpcTransport.ready`."""
        try:
            if not (await self._ask("ServerReady", service_pb2.ServerReadyRequest())).ready:
                return False
        except LatentryError:
            return False
        for model in await self._ready_models(streams=True):
            with suppress(*_REFUSED):
                await self._ask_stream(model)
        return True

    async def model_names(self) -> list[str]:
        """Names of the models being served, sorted, without their stream models."""
        return await self._ready_models(streams=False)

    async def model_info(self, model: str) -> ModelInfo:
        """What is being served under ``model``; raises NotFound."""
        self._connected()
        if (known := self._infos.get(model)) is not None:
            return known
        try:
            config = await self._ask("ModelConfig", service_pb2.ModelConfigRequest(name=model))
            question = service_pb2.ModelMetadataRequest(name=model)
            metadata = await self._ask("ModelMetadata", question)
        except NotFound as error:
            raise _not_found(model, await self.model_names()) from error
        info = codec.info_from_config(config.config, metadata.versions)
        self._infos.put(info)
        return info

    async def infer(self, model: str, inputs: Arrays) -> Reply:
        """Send one unary request; cancelling the task abandons the answer."""
        request = codec.infer_request(model, inputs)
        response = await answer_of(self._start("ModelInfer", request))
        reply = codec.reply_from_response(response)
        self._infos.watch_reply(model, reply)
        return reply

    async def stream(self, model: str, requests: Iterator[Arrays]) -> AsyncIterator[Reply]:
        """Send stream requests to ``model``, each once the one before it is answered in full."""
        process = os.getpid()
        connection = self._connected()
        metadata = self._address.metadata
        call = connection.stub.ModelStreamInfer(metadata=metadata)
        try:
            for request in _stream_requests(f"{model}{STREAM_SUFFIX}", requests):
                await call.write(request)
                while (message := await call.read()) is not connection.grpc.aio.EOF:
                    response = _response_from_stream(message, self._address)
                    if response.outputs:
                        yield codec.reply_from_response(response)
                        _check_process(process)
                    if codec.is_final(response):
                        break
            await call.done_writing()
            await call.read()
        except asyncio.InvalidStateError as error:
            # The call ended between two requests, and gRPC says only that it did.
            if (code := await call.code()) is connection.grpc.StatusCode.OK:
                return
            ended = error_from_status(code, await call.details(), self._address.url)
            raise self._infos.watched(ended) from error
        except connection.grpc.RpcError as error:
            raise self._infos.watched(error_from_rpc(error, self._address.url)) from error
        except LatentryError as error:
            self._infos.watched(error)
            raise
        finally:
            if os.getpid() == process:
                call.cancel()
            else:
                keep_for_ever(call)

    async def close(self) -> None:
        """Give up the connection; answers that nobody waits for get a second to come in."""
        self._closed = True
        if self._connection is None or self._loop is not asyncio.get_running_loop():
            return
        if self._open:
            await asyncio.wait(tuple(self._open), timeout=CLOSE_GRACE_S)
        await self._connection.channel.close()

    def _connected(self) -> GrpcConnection:
        if self._closed:
            raise _closed()
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            self._leave_loop(self._loop)
        if self._connection is None:
            self._connection = GrpcConnection(self._address, asynchronous=True)
            self._loop = loop
        self._infos.watch_channel(self._connection.channel)
        return self._connection

    def _leave_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up the connection of an event loop that has ended."""
        if not loop.is_closed():
            raise BadRequest(
                "this client is in use by another event loop; make one AsyncClient for each loop"
            )
        self._connection = None
        self._open = set()
        self._infos = InfoCache()

    async def _ready_models(self, *, streams: bool) -> list[str]:
        index = await self._ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))
        return _names_from_index(index, streams=streams)

    async def _ask_stream(self, model: str) -> None:
        """See :meth:`GrpcTransport._ask_stream`."""
        connection = self._connected()
        seconds = time_for_question(QUESTION_TIMEOUT_S)
        requests = _stream_requests(model, iter([_NOTHING]))
        call = connection.stub.ModelStreamInfer(requests, metadata=self._address.metadata)
        try:
            async with asyncio.timeout(seconds):
                messages = [message async for message in call]
        except TimeoutError:
            raise _no_answer(self._address, seconds, self._connection) from None
        except connection.grpc.RpcError as error:
            raise self._infos.watched(error_from_rpc(error, self._address.url)) from error
        for message in messages:
            _response_from_stream(message, self._address)

    async def _ask(self, method: str, request: Any) -> Any:
        answer = self._start(method, request)
        seconds = time_for_question(QUESTION_TIMEOUT_S)
        try:
            async with asyncio.timeout(seconds):
                return await answer_of(answer)
        except TimeoutError:
            raise _no_answer(self._address, seconds, self._connection) from None

    def _start(self, method: str, request: Any) -> "asyncio.Future[Any]":
        connection = self._connected()
        call = getattr(connection.stub, method)(request, metadata=self._address.metadata)
        answer = asyncio.ensure_future(self._response(connection, call))
        self._open.add(answer)
        answer.add_done_callback(self._open.discard)
        return answer

    async def _response(self, connection: GrpcConnection, call: Awaitable[Any]) -> Any:
        try:
            return await call
        except connection.grpc.RpcError as error:
            raise self._infos.watched(error_from_rpc(error, self._address.url)) from error


def _names_from_index(index: Any, *, streams: bool) -> list[str]:
    names = {model.name for model in index.models if model.state == "READY"}
    return sorted(name for name in names if name.endswith(STREAM_SUFFIX) is streams)


def _not_found(model: str, names: Iterable[str]) -> NotFound:
    return NotFound(f"model {model!r} is not being served; these are: {listed(names) or 'none'}")


def _closed() -> BadRequest:
    return BadRequest("this client is closed; make a new one")


def _check_process(process: int) -> None:
    if os.getpid() != process:
        raise BadRequest(
            "this stream was begun before the process was forked and goes on in its parent only; "
            "begin one here"
        )


def _no_answer(address: Address, seconds: float, connection: GrpcConnection | None) -> TimedOut:
    if connection is not None and is_connected(connection.channel):
        what = "took the question and did not answer; it hangs or is overloaded: see its log"
    else:
        what = (
            "accepts no gRPC connection, or is not reached; is it the address of a server, and "
            "does it hang?"
        )
    return TimedOut(f"no answer from {address.url} within {seconds:.1f} s: the server {what}")


def _response_from_stream(message: Any, address: Address) -> Any:
    if message.error_message:
        raise error_from_status(None, message.error_message, address.url)
    return message.infer_response


def _stream_requests(stream_model: str, requests: Iterator[Arrays]) -> Iterator[Any]:
    """Yield the messages of one stream; each says whether others came before and will follow."""
    request, continues = next(requests, None), False
    while request is not None:
        following = next(requests, None)
        places = {CONTINUES: continues, TO_BE_CONTINUED: following is not None}
        parameters = {name: True for name, holds in places.items() if holds}
        parameters[codec.ASK_FINAL_RESPONSE] = True
        yield codec.infer_request(stream_model, request, parameters)
        request, continues = following, True
