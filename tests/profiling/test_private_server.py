from pathlib import Path

import pytest
from running_server import LATENTRY

from latentry.clients import Client, ServerGone
from latentry.contract.errors import ServeError
from latentry.profiling.private_server import private_server
from latentry.profiling.server_usage import served_configuration

pytestmark = pytest.mark.server


def test_a_configuration_is_served_for_a_while_and_nothing_else_changes(repository: Path) -> None:
    serving = {
        "instances": 1,
        "threads": 1,
        "max_batch_size": 4,
        "max_queue_delay_microseconds": 100,
        "max_queue_size": 0,
    }
    manifest = (
        repository / "digits" / "1" / "builds" / "onnxruntime-fp32" / "build.json"
    ).read_bytes()
    with (
        private_server([str(LATENTRY)], repository, "digits", "onnxruntime-fp32", serving) as url,
        Client(url) as client,
    ):
        assert served_configuration(url, "digits") == serving
        assert client.info("digits").max_batch_size == 4
        whole = client.generate("digits", seeds=range(10), class_label=3)
        chunks = list(client.stream("digits", seeds=range(10), class_label=3))
        assert [len(chunk) for chunk in chunks] == [4, 4, 2]
        assert (chunks[0].images == whole.images[:4]).all()
    with pytest.raises(ServerGone), Client(url) as client:
        client.models()
    assert (
        repository / "digits" / "1" / "builds" / "onnxruntime-fp32" / "build.json"
    ).read_bytes() == manifest


def test_what_cannot_be_served_says_why(repository: Path) -> None:
    with (
        pytest.raises(ServeError, match="did not start: .*more than the export of digits proved"),
        private_server(
            [str(LATENTRY)], repository, "digits", "onnxruntime-fp32", {"max_batch_size": 1000}
        ),
    ):
        pass
