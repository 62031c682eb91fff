"""The synchronous client."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from latentry.clients.base import ClientBase, check_transport_is_alone
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
from latentry.clients.streams import StreamCursor, close_replies
from latentry.contract.errors import LatentryError, TimedOut
from latentry.contract.spec import check_name
from latentry.contract.transport import ModelInfo, Reply, Transport
from latentry.contract.wire import Arrays

T = TypeVar("T")

# Parts of one call that are under way at a time: enough to keep a server busy.
PARTS_IN_FLIGHT = 4


class Client(ClientBase):
    """Asks a Latentry server for images.

    One client holds one connection and may be used from several threads. In a forked process it
    opens one of its own; pickled, it is made anew with the same arguments.

    Example::

        with Client() as client:
            for image in client.generate("digits", seeds=range(4), class_label=7):
                ...
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout_s: float | None = 120.0,
        retry_for_s: float | None = None,
        tls: bool | str | PathLike[str] | tuple[str | None, str, str] = False,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        """Make a client; the connection is opened by the first call.

        Args:
            url: ``HOST:PORT``; None takes the environment's ``LATENTRY_URL`` or 127.0.0.1:8001.
            timeout_s: Longest a ``generate`` may take, retries and all; None for no limit. The
                answer is abandoned then, the server is not told.
            retry_for_s: Keep trying for so long when the server is busy or gone; None means up to
                3 attempts within 0.8 s.
            tls: Whether to use TLS; a file of root certificates, or (roots or None, private key,
                certificate chain), all PEM.
            headers: Sent with every call, for a proxy that asks for a token; to another machine
                with TLS only.
            transport: What answers instead of a server, such as a ``LocalTransport``; it is closed
                with the client.

        Raises:
            BadRequest: An argument is not allowed.
        """
        super().__init__(timeout_s, retry_for_s)
        if transport is None:
            # Here, because importing gRPC takes longer than everything else together.
            from latentry.clients.transports.grpc_transport import GrpcTransport

            transport = GrpcTransport(url, tls=tls, headers=headers)
        else:
            check_transport_is_alone(url, tls, headers)
        self._transport: Transport = transport

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        self._transport.close()

    def generate(
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
        """Draw samples, one for each seed, or for each row of the inputs, in their order.

        Args:
            model: Name of the model.
            seeds: One integer or several, 0 .. 2^32-1: where a latent is drawn from them. Give
                either seeds or n, unless every such latent is given.
            n: Number of samples with seeds of the system's randomness (they are in the result).
            format: How pictures come: ``raw`` (uint8), ``float`` (also the network's float32),
                ``png``, ``jpeg`` or ``webp``.
            resize: Whether pictures of other sizes than the model takes are scaled to the nearest
                that it does, each side by itself; else they are refused. It is done here, bicubic
                (label maps: the nearest pixel; with alpha, transparent pixels lose their colour),
                so what counts as the input are the scaled pixels. Where sides are free, pictures
                of one request still have to come out in one size.
            timeout_s: As in :meth:`__init__`, for this call.
            inputs: Any input that the model declares, by its name (``info(model).spec``): one
                value for all samples, or one for each. Classes are integers or names; latents
                (``z``, ``w``) float32 [N, *shape]; pictures uint8 arrays [H, W, C], PIL images,
                ``pathlib.Path`` or the bytes of files. Those left out have their defaults.

        Raises:
            BadRequest: What was asked is not allowed; the message says what is.
            NotFound: There is no such model.
            Busy: The server's queue is full.
            TimedOut: No answer came in time.
            Draining: The server is shutting down.
            ServerGone: Nobody answers, or the server died.
            InvalidOutput: The generator produced NaN or infinity.
            ServerFault: The server answered with another fault.
        """
        arguments = CallerArguments(seeds, n, inputs, format, resize)
        deadline = self._deadline(timeout_s)
        info = self._info(model, deadline)
        samples = samples_from_arguments(info, arguments, max_bytes=MAX_RESULT_BYTES)
        replies = self._infer_all(model, unary_requests(samples), deadline)
        return result_from_replies(samples, self._info_again(info, deadline), replies)

    def stream(
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
    ) -> Generator[StreamChunk, None, None]:
        """Draw images and give them in chunks as they come; arguments as in :meth:`generate`.

        The number of images is not limited by memory: the server is asked for more when what it
        sent has been taken. Closing the iterator cancels the rest. ``timeout_s`` holds for each
        question about the model, which comes first; the images may take as long as they do.

        Args:
            model: Name of the model.
            seeds: See :meth:`generate`.
            n: See :meth:`generate`.
            format: See :meth:`generate`.
            resize: See :meth:`generate`.
            chunk_size: Samples in a chunk; None for a small first chunk and large ones after it.
            resume: Go on by itself when the stream breaks, within ``retry_for_s`` each time.
            inputs: See :meth:`generate`.

        Raises:
            ServerGone: The stream broke after its first images, whatever the cause: ``resume_at``
                is the index of the first sample that was not delivered.
            InvalidOutput: The generator produced NaN or infinity, at any place of the stream.
                Before the first images others, too, as for :meth:`generate`.
        """
        arguments = CallerArguments(seeds, n, inputs, format, resize)
        size = check_chunk_size(chunk_size)
        info = self._info(model, self._deadline(UNSET))
        samples = samples_from_arguments(info, arguments)
        return self._chunks(StreamCursor(samples, size), resume)

    def models(self) -> list[str]:
        """Return the names of the generators being served, sorted.

        Raises:
            LatentryError: As for :meth:`generate`.
        """
        return self._retried(self._transport.model_names, self._deadline(UNSET))

    def info(self, model: str) -> ModelInfo:
        """Return what is being served under ``model``.

        Raises:
            NotFound: There is no such model; others as for :meth:`generate`.
        """
        return self._info(model, self._deadline(UNSET))

    def health(self) -> Health:
        """Return whether the server is ready, and the reason where it is not; never raises.

        It takes up to ``timeout_s``, or 10 s where that is longer.
        """
        try:
            with health_deadline(self._timeout_s).kept():
                return health_from_names(self._transport.ready(), self._transport.model_names())
        except LatentryError as error:
            return Health(False, str(error), error=error)

    def _info(self, model: str, deadline: Deadline) -> ModelInfo:
        check_name(model)
        return self._retried(lambda: self._transport.model_info(model), deadline)

    def _info_again(self, info: ModelInfo, deadline: Deadline) -> ModelInfo:
        """Return what is served now; known already while the connection has stood."""
        try:
            with deadline.kept():
                return self._transport.model_info(info.name)
        except (*RETRIED, TimedOut):
            return info  # the server went right after its last answer

    def _retried(self, call: Callable[[], T], deadline: Deadline) -> T:
        retries = Retries(self._policy, deadline)
        while True:
            try:
                with deadline.kept():
                    return call()
            except RETRIED as error:
                time.sleep(retries.delay_s(error))

    def _infer_all(self, model: str, requests: Sequence[Arrays], deadline: Deadline) -> list[Reply]:
        replies = []
        waiting: deque[Future[Reply]] = deque()
        ahead = iter(requests)
        for request in requests:
            for later in islice(ahead, PARTS_IN_FLIGHT - len(waiting)):
                waiting.append(self._transport.infer(model, later))
            replies.append(self._settle(model, request, waiting.popleft(), deadline))
        return replies

    def _settle(
        self, model: str, request: Arrays, future: Future[Reply], deadline: Deadline
    ) -> Reply:
        """Wait for one part, starting it again where that may help."""
        retries = Retries(self._policy, deadline)
        while True:
            try:
                return future.result(deadline.left_s())
            except TimeoutError:
                raise deadline.error() from None
            except RETRIED as error:
                time.sleep(retries.delay_s(error))
            future = self._transport.infer(model, request)

    def _chunks(self, cursor: StreamCursor, resume: bool) -> Generator[StreamChunk, None, None]:
        retries = Retries(self._policy, Deadline(None))
        while not cursor.finished:
            replies: Iterator[Reply] = iter(())
            try:
                with self._deadline(UNSET).kept():
                    cursor.check_model(self._transport.model_info(cursor.model))
                replies = self._transport.stream(cursor.model, cursor.requests())
                for reply in replies:
                    yield cursor.take(reply)
                    retries = Retries(self._policy, Deadline(None))
                cursor.check_finished()
            except LatentryError as error:
                time.sleep(cursor.delay_s(error, retries, resume=resume))
            finally:
                close_replies(replies)
