"""Whether anything still moves between a server and those connected to it, seen from beside it.

Read from the kernel by netlink (sock_diag(7), struct tcp_info of linux/tcp.h); nothing is asked of
the server.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE, _ERROR = 3, 2
_ESTABLISHED = 1 << 1
_TCP_INFO = 2
_HEADER = struct.Struct("=IHHII")
_MESSAGE_BYTES = 72
_BYTES_ACKED = struct.Struct("=QQ")  # acknowledged and received, at 120
_BYTES_ACKED_AT = 120

# A reader that takes something lets the server know; a connection without that is an idle one.
_IDLE_S = 3.0
# Slow readers let it know in steps, by the window of their HTTP/2; the next one may take longer,
# on a busy machine many times as long.
_STILL_S, _LONGER = 6.0, 6.0

Moved = dict[tuple[int, bytes], int]


def bytes_moved(port: int) -> Moved:
    """Return the bytes that went both ways on each connection to ``port``, by the other end.

    Bytes count as sent once the other end's kernel has them. {} where the kernel does not tell.
    """
    moved: Moved = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            for peer, count in _connections(family, port):
                moved[family, peer] = count
        except OSError:
            continue
    return moved


def _connections(family: int, port: int) -> Iterator[tuple[bytes, int]]:
    extensions = 1 << (_TCP_INFO - 1)
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, extensions, _ESTABLISHED)
    request += struct.pack(">H46x", port)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        size = _HEADER.size + len(request)
        kernel.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            for kind, body in _parts(kernel.recv(65_536)):
                if kind in (_DONE, _ERROR):
                    return
                peer = body[6:8] + body[24:40]  # port and address
                for attribute, info in _attributes(body[_MESSAGE_BYTES:]):
                    if attribute == _TCP_INFO and len(info) >= _BYTES_ACKED_AT + 16:
                        yield peer, sum(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT))


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : size]
        data = data[_aligned(max(size, _HEADER.size)) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:size]
        data = data[_aligned(max(size, 4)) :]


def _aligned(size: int) -> int:
    return (size + 3) & ~3


class Delivery:
    """What a server hands over to those connected to it, from now on."""

    def __init__(
        self,
        port: int,
        look: Callable[[int], Moved] = bytes_moved,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._clock = clock
        self._port = port
        self._moved = self._look(port)
        self._moved_s = clock()
        self._longest_s = 0.0

    def has_ended(self) -> bool:
        """Whether nobody is connected, or nothing moves any more.

        Three seconds without anything are enough where nothing has moved before; where something
        has, it takes six, or six times the longest pause so far.
        """
        moved, still_s = self._look(self._port), self._clock() - self._moved_s
        if moved != self._moved:
            self._longest_s = max(self._longest_s, still_s)
            self._moved, self._moved_s = moved, self._clock()
            still_s = 0.0
        patience_s = max(_STILL_S, _LONGER * self._longest_s) if self._longest_s else _IDLE_S
        return not moved or still_s > patience_s
