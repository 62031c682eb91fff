"""The least HTTP/1.1 client that can ask for images: keep-alive sockets and one reading thread.

A full client would take several times the CPU for each request, from the cores that are measured.
It understands what the peers send: a status line, headers with Content-Length, a body.
"""

import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

Done = Callable[[Exception | None], None]
# Gets the seed that was asked for and the image.
OnImage = Callable[[int, bytes], None]

_END_OF_HEADERS = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_RECEIVED_BYTES = 2**16


class HttpTarget:
    """Sends one request after another; each holds a connection until its answer is there.

    Args:
        address: Host and port.
        request: Gives the bytes of the request for a seed.
        seeds: The seeds to ask for.
        image_bytes: What every answer must hold.
        connections: How many are opened at once at the start; more are opened when all are busy.
        on_image: Called with every image, from the reading thread.
    """

    def __init__(
        self,
        address: tuple[str, int],
        request: Callable[[int], bytes],
        seeds: Iterator[int],
        *,
        image_bytes: int,
        connections: int,
        on_image: OnImage | None = None,
    ) -> None:
        self._address = address
        self._request = request
        self._seeds = seeds
        self._image_bytes = image_bytes
        self._on_image = on_image
        self._selector = selectors.DefaultSelector()
        self._closed = threading.Event()
        self._all: list[_Connection] = []
        # Taken in turn: servers with several processes spread connections, not requests.
        self._idle = deque(self._connect() for _ in range(connections))
        self._reader = threading.Thread(target=self._read_forever, daemon=True)
        self._reader.start()

    def send(self, done: Done) -> None:
        """Ask for the image of the next seed; ``done`` is called once, from the reading thread."""
        seed = next(self._seeds)
        try:
            connection = self._idle.popleft() if self._idle else self._connect()
        except OSError as error:
            done(error)
            return
        connection.seed = seed
        connection.waiting.append(done)
        try:
            connection.socket.sendall(self._request(seed))
        except OSError as error:
            connection.end(error)

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._reader.join()
        for connection in self._all:
            connection.socket.close()
        self._selector.close()

    def _connect(self) -> "_Connection":
        connection = _Connection(socket.create_connection(self._address, timeout=60))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._all.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _read_forever(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                self._read(key.data)

    def _read(self, connection: "_Connection") -> None:
        try:
            part = connection.socket.recv(_RECEIVED_BYTES)
            if not part:
                raise ConnectionError("the server closed the connection")
            body = connection.add(part)
        except (OSError, ValueError) as error:
            self._selector.unregister(connection.socket)
            with suppress(ValueError):  # servers close what has been idle for some seconds
                self._idle.remove(connection)
            connection.end(error)
            return
        if body is not None:
            self._finish(connection, body)

    def _finish(self, connection: "_Connection", body: bytes) -> None:
        done, seed = connection.waiting.pop(), connection.seed
        self._idle.append(connection)
        error = None
        if len(body) != self._image_bytes:
            error = ValueError(f"{len(body)} bytes instead of an image: {body[:200]!r}")
        elif self._on_image is not None:
            self._on_image(seed, body)
        done(error)


class _Connection:
    """A socket, whose answer is awaited on it, and what has come of that answer."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.seed = 0
        # At most one; taken out once, by whichever thread finds how it ended.
        self.waiting: list[Done] = []
        self._received = b""
        self._missing = 0

    def end(self, error: Exception) -> None:
        """Tell who waits, if anybody does, that there will be no answer."""
        with suppress(IndexError):
            self.waiting.pop()(error)

    def add(self, part: bytes) -> bytes | None:
        """Take what came; return the body when it is whole.

        Raises:
            ValueError: It is no answer, or not the one that is hoped for.
        """
        self._received += part
        if self._missing > len(part):
            self._missing -= len(part)
            return None
        start, length = body_place(self._received)
        if start is None:
            return None
        self._missing = start + length - len(self._received)
        if self._missing > 0:
            return None
        body, self._received, self._missing = self._received[start : start + length], b"", 0
        return body


def body_place(received: bytes) -> tuple[int | None, int]:
    """Return where the body of an answer begins (None while headers are missing), and its length.

    Raises:
        ValueError: The status is not 200, or there is no Content-Length.
    """
    end = received.find(_END_OF_HEADERS)
    if end < 0:
        return None, 0
    if received[9:12] != b"200":
        raise ValueError(f"the server answered {received[9 : received.find(13)].decode()}")
    headers = received[: end + 2].lower()
    at = headers.find(_LENGTH)
    if at < 0:
        raise ValueError(f"no Content-Length in {headers!r}")
    at += len(_LENGTH)
    return end + len(_END_OF_HEADERS), int(headers[at : headers.index(b"\r\n", at)])


def get(path: str) -> Callable[[int], bytes]:
    """Return what makes a GET for a seed; ``{seed}`` in the path is replaced."""
    return lambda seed: f"GET {path.format(seed=seed)} HTTP/1.1\r\nHost: peer\r\n\r\n".encode()


def post(path: str) -> Callable[[int], bytes]:
    """Return what makes a POST with the seed as a JSON object."""
    head = f"POST {path} HTTP/1.1\r\nHost: peer\r\nContent-Type: application/json\r\n"

    def request(seed: int) -> bytes:
        body = f'{{"seed":{seed}}}'
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    return request
