import pytest
from running_server import RunningServer

from latentry.clients import Client
from latentry.profiling.extras import measure_client, measure_formats, measure_streams


@pytest.mark.server
def test_streams_formats_and_the_clients_share(triton: RunningServer) -> None:
    with Client(triton.url) as client:
        streams = measure_streams(client, "digits", 1.0)
        overhead = measure_client(client, triton.url, "digits", repeats=30)
    assert not streams.errors
    assert streams.streams >= 1
    assert streams.images_per_s.value is not None
    assert streams.gap_ms["50"].value or "needs" in streams.gap_ms["50"].why
    assert overhead.client_ms.value is not None
    assert overhead.bytes_ms.value is not None
    assert overhead.client_ms.value > 0.5 * overhead.bytes_ms.value  # more on a quiet machine
    formats = measure_formats(triton.url, "digits", rounds=2, window_s=0.3)
    assert [item.image_format for item in formats] == ["raw", "png", "jpeg", "webp"]
    assert [item.errors for item in formats] == [{}] * 4
    assert all(item.throughput.value is not None for item in formats)
    assert formats[0].answer_bytes > 32 * 32
