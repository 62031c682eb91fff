"""Unary gRPC calls over a bare socket: as little work a call as Python can do, for measuring.

A request through the ``grpc`` package costs 300 to 400 microseconds of processor time in Python,
whether by futures, by threads or by ``grpc.aio``; here it is 80. On two cores at 600 requests a
second that is 2 % of the machine instead of 10 %, taken from the server that is being measured.

The protocol is HTTP/2 (RFC 9113) with HPACK (RFC 7541), as far as gRPC uses it for one unary
method: requests are one prebuilt block of headers and the frames of their body, as many as the
server's windows allow; of an answer's headers only the status in its trailers matters. There is no
TLS.
"""

import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import unquote

from latentry.contract.errors import BadRequest, LatentryError, ServerFault, ServerGone
from latentry.profiling.load.flow_control import (
    DATA,
    END_STREAM,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    Outflow,
    frame,
)

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

Done = Callable[[Exception | None, bytes], None]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 1, 3, 4, 6, 7, 8
_ACK, _END_HEADERS = 1, 4
_CANCEL = struct.pack(">I", 8)
_FRAME = 9
_MOST_WINDOW = 2**31 - 1
_READ_BYTES = 2**18
_CONNECT_S = 10.0
# With a table of size 0 a server must write every header out; gRPC writes no Huffman codes.
_STATUS = re.compile(rb"\x0bgrpc-status[\x01\x02]([0-9]{1,2})")
_MESSAGE = b"\x0cgrpc-message"


class UnaryCalls:
    """One connection; :meth:`start` may be called from several threads."""

    def __init__(self, url: str, method: str = MODEL_INFER) -> None:
        """Connect to ``HOST:PORT``; raises ServerGone where nobody listens."""
        host, _, port = url.rpartition(":")
        try:
            self._socket = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S)
        except OSError as error:
            raise ServerGone(f"no answer from {url} ({error.strerror or error})") from error
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._url = url
        self._headers = _request_headers(url, method)
        self._lock = threading.Lock()
        self._calls: dict[int, Done] = {}
        self._bodies: dict[int, bytearray] = {}
        self._next_stream = 1
        self._received = 0
        self._ended: Exception | None = None
        self._outflow = Outflow()
        settings = struct.pack(
            ">HIHIHI",
            *(HEADER_TABLE_SIZE, 0),
            *(INITIAL_WINDOW_SIZE, _MOST_WINDOW),
            *(MAX_FRAME_SIZE, 2**24 - 1),
        )
        self._socket.sendall(
            _PREFACE + frame(_SETTINGS, 0, 0, settings) + _window_update(_MOST_WINDOW - 2**16)
        )
        self._reader = threading.Thread(target=self._read, name="unary-calls", daemon=True)
        self._reader.start()

    def start(self, message: bytes, done: Done) -> None:
        """Send one serialized request, what the server takes of it now and the rest when it does.

        Args:
            message: The request.
            done: Called once, from the reading thread, with an error or None and the answer's
                bytes.
        """
        body = b"\0" + struct.pack(">I", len(message)) + message
        with self._lock:
            ended, stream = self._ended, self._next_stream
            if ended is None:
                self._next_stream += 2
                self._calls[stream] = done
                headers = frame(_HEADERS, _END_HEADERS, stream, self._headers)
                # Where sending fails the reading thread fails too, and ends every call.
                with suppress(OSError):
                    self._socket.sendall(headers + self._outflow.add(stream, body))
        if ended is not None:
            done(ended, b"")

    def ask(self, message: bytes, timeout_s: float = 30.0) -> bytes:
        """Send one request and return its answer; raises LatentryError."""
        answered = threading.Event()
        answer: list[tuple[Exception | None, bytes]] = []

        def done(error: Exception | None, body: bytes) -> None:
            answer.append((error, body))
            answered.set()

        self.start(message, done)
        if not answered.wait(timeout_s):
            raise ServerGone(f"no answer from {self._url} within {timeout_s:g} s")
        error, body = answer[0]
        if error is not None:
            raise error
        return body

    def close(self) -> None:
        """Give up the connection; calls under way end with an error."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        error: Exception = ServerGone(f"{self._url} closed the connection")
        buffer = bytearray()
        try:
            while chunk := self._socket.recv(_READ_BYTES):
                buffer += chunk
                self._take_frames(buffer)
        except OSError as loss:
            error = ServerGone(f"the connection to {self._url} was lost ({loss.strerror})")
        except Exception as fault:  # whatever it is, nobody may wait for this thread in vain
            error = ServerFault(f"{self._url} sent what is not understood ({fault!r})")
        with self._lock:
            self._ended = error
            calls, self._calls = self._calls, {}
        for done in calls.values():
            done(error, b"")

    def _take_frames(self, buffer: bytearray) -> None:
        start, end = 0, len(buffer)
        while end - start >= _FRAME:
            body = start + _FRAME
            stop = body + int.from_bytes(buffer[start : start + 3], "big")
            if stop > end:
                break
            stream = int.from_bytes(buffer[start + 5 : body], "big")
            self._take(buffer[start + 3], buffer[start + 4], stream, buffer[body:stop])
            start = stop
        del buffer[:start]

    def _take(self, kind: int, flags: int, stream: int, body: bytearray) -> None:
        if kind == DATA:
            if stream in self._bodies:
                self._bodies[stream] += body
            else:
                self._bodies[stream] = body
            self._widen_window(len(body))
        elif kind == _HEADERS and flags & END_STREAM:
            self._finish(stream, self._error_from_trailers(body))
        elif kind == _RST_STREAM:
            self._finish(stream, ServerFault(f"{self._url} reset the request"))
        elif kind == _WINDOW_UPDATE:
            count = int.from_bytes(body, "big") & _MOST_WINDOW
            self._send(lambda: self._outflow.widen(stream, count))
        elif kind == _SETTINGS and not flags & _ACK:
            ack = frame(_SETTINGS, _ACK, 0, b"")
            self._send(lambda: ack + self._outflow.apply(bytes(body)))
        elif kind == _PING and not flags & _ACK:
            self._send(lambda: frame(_PING, _ACK, 0, bytes(body)))
        elif kind == _GOAWAY:
            raise ConnectionAbortedError(0, "the server goes away")

    def _finish(self, stream: int, error: LatentryError | None) -> None:
        self._send(lambda: self._end_request(stream))
        body = self._bodies.pop(stream, b"")
        done = self._calls.pop(stream, None)
        if done is not None:
            # A message is preceded by a flag and its length.
            done(error, bytes(body[5:]))

    def _end_request(self, stream: int) -> bytes:
        """Take back what is left of a request whose answer came before all of it had gone."""
        return frame(_RST_STREAM, 0, stream, _CANCEL) if self._outflow.drop(stream) else b""

    def _error_from_trailers(self, block: bytearray) -> LatentryError | None:
        status = _STATUS.search(block)
        if status and status[1] == b"0":
            return None
        # Here, because importing gRPC is slow and a measurement without failures has no need of it.
        import grpc

        from latentry.clients.transports.rpc_errors import error_from_status

        number = int(status[1]) if status else grpc.StatusCode.UNKNOWN.value[0]
        codes = {code.value[0]: code for code in grpc.StatusCode}
        code = codes.get(number, grpc.StatusCode.UNKNOWN)
        return error_from_status(code, _message_from_trailers(block), self._url)

    def _widen_window(self, count: int) -> None:
        """Let the server send on; each stream has a window of 2 GiB that needs no care."""
        self._received += count
        if self._received > _MOST_WINDOW // 2:
            update = _window_update(self._received)
            self._send(lambda: update)
            self._received = 0

    def _send(self, make: Callable[[], bytes]) -> None:
        """Send what ``make`` returns, in the order in which it is made."""
        with self._lock:
            if frames := make():
                self._socket.sendall(frames)


def _request_headers(url: str, method: str) -> bytes:
    """Return the block of headers of a request: RFC 7541, nothing indexed, nothing compressed."""
    post_over_http = b"\x83\x86"  # entries 3 and 6 of the static table
    headers = {
        ":path": method,
        ":authority": url,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    literals = (b"\0" + _text(name) + _text(value) for name, value in headers.items())
    return post_over_http + b"".join(literals)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 126:
        raise BadRequest(f"address {text!r} is too long; give one of at most 126 characters")
    return bytes([len(data)]) + data


def _window_update(count: int) -> bytes:
    return frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", count))


def _message_from_trailers(block: bytearray) -> str:
    """Return gRPC's message, percent-decoded; it is a text with a length before it."""
    text = bytes(block).partition(_MESSAGE)[2]
    if not text:
        return ""
    length, start = text[0], 1
    if length >= 127:
        # An integer with a prefix of 7 bits: 127 is followed by groups of 7 bits, lowest first.
        for shift in range(0, 28, 7):
            group = text[start]
            start += 1
            length += (group & 127) << shift
            if not group & 128:
                break
    return unquote(text[start : start + length].decode("ascii", "replace"))
