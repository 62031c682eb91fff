"""Where a stream stands, without any input or output: shared by both clients."""

from collections.abc import Generator, Iterator
from contextlib import suppress

from latentry.clients.results import StreamChunk, chunk_from_reply
from latentry.clients.retry import RETRIED, Retries
from latentry.clients.samples import CheckedSamples, samples_per_stream_request, stream_requests
from latentry.contract.errors import (
    BadRequest,
    InvalidOutput,
    LatentryError,
    ServerFault,
    ServerGone,
    TimedOut,
)
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.wire import Arrays

# The stream did as it was told: no other try, and no other server, would go on.
_NO_BREAK = (BadRequest, InvalidOutput)


class StreamCursor:
    """Counts what a stream has delivered, so that it can go on from there.

    Attributes:
        delivered: Number of samples delivered.
    """

    def __init__(self, samples: CheckedSamples, chunk_size: int | None) -> None:
        self.delivered = 0
        self._samples = samples
        self._chunk_size = chunk_size
        self._start = 0

    @property
    def finished(self) -> bool:
        """Whether every sample has been delivered."""
        return self.delivered == self._samples.rows.count

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._samples.info.name

    def check_model(self, now: ModelInfo) -> None:
        """Check that the model is the one that the stream began with.

        Raises:
            ServerGone: Another one is being served under its name.
        """
        began = self._samples.info
        if now.identity != began.identity:
            raise self._broken(ServerFault(f"{began.name} was replaced by another model"))

    def requests(self) -> Iterator[Arrays]:
        """Return the requests for what has not been delivered."""
        self._start = self.delivered
        return stream_requests(self._samples, self._start, self._chunk_size)

    def take(self, reply: Reply) -> StreamChunk:
        """Return the chunk in ``reply`` and count it as delivered.

        Raises:
            ServerFault: It is not the chunk that comes next.
        """
        expected = (self.delivered - self._start) % samples_per_stream_request(self._samples)
        index = reply.outputs.get("index")
        if index is None or index.size != 1 or int(index.flat[0]) != expected:
            what = "no index" if index is None else f"index {index.tolist()}"
            raise ServerFault(f"the stream sent a chunk with {what}; {expected} was next")
        chunk = chunk_from_reply(self._samples, self.delivered, reply)
        self.delivered += len(chunk)
        return chunk

    def check_finished(self) -> None:
        """Check a stream that the server has ended.

        Raises:
            ServerGone: Samples are missing.
        """
        if not self.finished:
            raise ServerGone("the server ended the stream early")

    def delay_s(self, error: LatentryError, retries: Retries, *, resume: bool) -> float:
        """Return the seconds to wait before the stream goes on after ``error``.

        Raises:
            ServerGone: It does not go on; ``resume_at`` says where it stands.
            LatentryError: ``error`` itself, where nothing had been delivered, or nothing broke.
        """
        if isinstance(error, _NO_BREAK) or getattr(error, "resume_at", None) is not None:
            raise error
        if not self.delivered:
            if isinstance(error, RETRIED):
                return retries.delay_s(error)
            raise error
        if resume and isinstance(error, (*RETRIED, TimedOut)):
            with suppress(LatentryError):
                return retries.delay_s(error)
        raise self._broken(error) from error

    def _broken(self, error: LatentryError) -> ServerGone:
        total, done = self._samples.rows.count, self.delivered
        return ServerGone(
            f"the stream broke off after {done} of {total} samples: {error}. Go on with samples "
            f"{done} to {total - 1}, or let it go on by itself with resume=True",
            resume_at=done,
        )


def close_replies(replies: Iterator[Reply]) -> None:
    """Cancel what is under way of a transport's stream."""
    if isinstance(replies, Generator):
        replies.close()
