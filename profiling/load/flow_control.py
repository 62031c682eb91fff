"""What of a connection's requests may be sent now: HTTP/2's flow control (RFC 9113, section 5.2).

A server says how much it takes, of the connection and of each stream; what is beyond waits for its
next word. Nothing here touches a socket.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

DATA, END_STREAM = 0, 1
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 4, 5
_SETTING = struct.Struct(">HI")


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Return a frame with its header of nine bytes."""
    return header(kind, flags, stream, len(body)) + body


def header(kind: int, flags: int, stream: int, count: int) -> bytes:
    """Return the header of a frame of ``count`` bytes."""
    return struct.pack(">IBBI", count, kind, flags, stream)[1:]


@dataclass
class _Body:
    rest: memoryview
    window: int


class Outflow:
    """The bodies of requests on one connection, each cut into frames as the server takes them.

    Every method returns the frames that may be sent now, maybe none. They must be called, and
    what they return be sent, in one order: callers hold a lock.
    """

    def __init__(self) -> None:
        # Until the server says otherwise.
        self._window = self._initial_window = 2**16 - 1
        self._largest_frame = 2**14
        self._waiting: dict[int, _Body] = {}

    def add(self, stream: int, body: bytes) -> bytes:
        """Take the body of a new stream, of at least one byte."""
        self._waiting[stream] = _Body(memoryview(body), self._initial_window)
        return self._cut([stream])

    def widen(self, stream: int, count: int) -> bytes:
        """Take a WINDOW_UPDATE of a stream, 0 being the connection."""
        if stream == 0:
            self._window += count
            return self._cut(list(self._waiting))
        if stream not in self._waiting:
            return b""
        self._waiting[stream].window += count
        return self._cut([stream])

    def apply(self, settings: bytes) -> bytes:
        """Take a frame of SETTINGS."""
        for name, value in _SETTING.iter_unpack(settings):
            if name == MAX_FRAME_SIZE:
                self._largest_frame = value
            elif name == INITIAL_WINDOW_SIZE:
                # Of open streams, too; their windows may become negative.
                for body in self._waiting.values():
                    body.window += value - self._initial_window
                self._initial_window = value
        return self._cut(list(self._waiting))

    def drop(self, stream: int) -> bool:
        """Forget a stream; return whether some of its body was not sent."""
        return self._waiting.pop(stream, None) is not None

    def _cut(self, streams: Iterable[int]) -> bytes:
        parts: list[bytes | memoryview] = []
        for stream in streams:
            if self._window <= 0:
                break
            parts += self._cut_one(stream, self._waiting[stream])
        return b"".join(parts)

    def _cut_one(self, stream: int, body: _Body) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = []
        while (most := min(self._window, body.window, self._largest_frame)) > 0 and body.rest:
            part, body.rest = body.rest[:most], body.rest[most:]
            self._window -= len(part)
            body.window -= len(part)
            parts += [header(DATA, 0 if body.rest else END_STREAM, stream, len(part)), part]
        if not body.rest:
            del self._waiting[stream]
        return parts
