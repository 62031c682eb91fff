import socket

import pytest

from latentry.serving.server.connections import bytes_moved


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
