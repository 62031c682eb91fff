import pytest

from latentry.clients import NotFound, ServerGone
from latentry.profiling.server_usage import served_configuration


def test_a_configuration_that_cannot_be_had_is_an_error_of_ours(start_server):
    server = start_server()
    assert served_configuration(server.url, "plain")["max_batch_size"] == 8
    with pytest.raises(NotFound, match="unknown model"):
        served_configuration(server.url, "nothing")
    server.stop()
    with pytest.raises(ServerGone, match=f"no answer from {server.url}"):
        served_configuration(server.url, "plain")
