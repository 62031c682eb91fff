import socket

import pytest

from latentry.serving.server.connections import Delivery, bytes_moved


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_bytes_are_counted_both_ways(family: int, host: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback")
        listener.listen()
        port = listener.getsockname()[1]
        assert bytes_moved(port) == {}
        with socket.create_connection((host, port)) as near, listener.accept()[0] as far:
            (before,) = bytes_moved(port).values()
            near.sendall(b"x" * 1_000)
            far.recv(1_000, socket.MSG_WAITALL)
            far.sendall(b"y" * 500)
            near.recv(500, socket.MSG_WAITALL)
            (after,) = bytes_moved(port).values()
            assert after - before == 1_500
            with socket.create_connection((host, port)), listener.accept()[0]:
                assert len(bytes_moved(port)) == 2


class Kernel:
    """Bytes moved on one connection, and a clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.moved: dict[tuple[int, bytes], int] = {(2, b"reader"): 0}
        self.delivery = Delivery(8001, lambda _: dict(self.moved), lambda: self.now_s)

    def move_after(self, seconds: float) -> None:
        self.now_s += seconds
        self.moved[2, b"reader"] += 1
        assert not self.delivery.has_ended()

    def ended_after(self, seconds: float) -> bool:
        self.now_s += seconds
        return self.delivery.has_ended()


def test_an_idle_connection_is_not_waited_for() -> None:
    kernel = Kernel()
    assert not kernel.ended_after(2.9)
    assert kernel.ended_after(0.2)


def test_nobody_connected_is_the_end() -> None:
    kernel = Kernel()
    kernel.moved.clear()
    assert kernel.ended_after(0)


def test_a_slow_reader_is_waited_for_as_it_reads() -> None:
    kernel = Kernel()
    for _ in range(5):
        kernel.move_after(2.0)
    assert not kernel.ended_after(11.9)
    assert kernel.ended_after(0.2)


def test_a_quick_reader_that_stops_is_idle() -> None:
    kernel = Kernel()
    for _ in range(5):
        kernel.move_after(0.1)
    assert not kernel.ended_after(5.9)
    assert kernel.ended_after(0.2)
