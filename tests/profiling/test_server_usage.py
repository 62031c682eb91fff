from collections.abc import Callable

import pytest
from arithmetic_server import ArithmeticServer
from running_server import RunningServer

from latentry.clients import Client, NotFound, ServerGone
from latentry.profiling.server_usage import ServerUsage, served_configuration


@pytest.mark.server
def test_what_the_server_runs_with_and_uses(triton: RunningServer) -> None:
    configuration = served_configuration(triton.url, "digits")
    assert configuration["instances"] == 1
    assert configuration["max_batch_size"] == 32
    assert configuration["max_queue_size"] == 0
    with ServerUsage(triton.url).watch() as watched, Client(triton.url) as client:
        client.generate("textures", seeds=range(200))
    begin, end = watched.times_s[0], watched.times_s[-1]
    assert watched.cores(begin, end) is not None
    assert watched.memory_mib is not None


def test_a_remote_server_is_not_watched() -> None:
    with ServerUsage("render-3:8001").watch() as watched:
        pass
    assert watched.memory_mib is None
    assert watched.cores(0, 1) is None


def test_a_configuration_that_cannot_be_had_is_an_error_of_ours(
    start_server: Callable[..., ArithmeticServer],
) -> None:
    server = start_server()
    assert served_configuration(server.url, "plain")["max_batch_size"] == 8
    with pytest.raises(NotFound, match="unknown model"):
        served_configuration(server.url, "nothing")
    server.stop()
    with pytest.raises(ServerGone, match=f"no answer from {server.url}"):
        served_configuration(server.url, "plain")
