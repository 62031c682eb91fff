import threading
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from arithmetic_server import FakeTransport
from doubles import InfoOf
from running_server import wait_until

from latentry.clients import (
    BadRequest,
    Busy,
    Client,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    Reply,
    ServerFault,
    ServerGone,
    TimedOut,
)
from latentry.contract.wire import Arrays


@pytest.fixture
def client(transport: FakeTransport) -> Iterator[Client]:
    with Client(transport=transport) as made:
        yield made


def seeds_sent(transport: FakeTransport) -> list[list[int]]:
    return [request["seed"][:, 0].tolist() for request in transport.requests]


def test_a_seed_draws_the_same_image_whatever_it_is_asked_with(client: Client) -> None:
    alone = client.generate("digits", seeds=11, class_label=2).images[0]
    among = client.generate("digits", seeds=range(30), class_label=2).images
    streamed = [
        image
        for chunk in client.stream("digits", seeds=range(30), class_label=2)
        for image in chunk
    ]
    assert np.array_equal(alone, among[11])
    assert np.array_equal(among, streamed)


def test_parts_come_back_in_order_however_they_finish(
    client: Client, transport: FakeTransport
) -> None:
    expected = client.generate("plain", seeds=range(40)).images
    transport.delays_s = [0.15, 0.1, 0.05, 0.0, 0.05]
    assert np.array_equal(client.generate("plain", seeds=range(40)).images, expected)


def test_several_parts_are_under_way_at_a_time(client: Client, transport: FakeTransport) -> None:
    transport.holds = True
    got = []
    thread = threading.Thread(target=lambda: got.append(client.generate("plain", seeds=range(64))))
    thread.start()
    wait_until(lambda: len(transport.held) == 4)
    time.sleep(0.05)  # for a fifth, which must not come
    assert len(transport.requests) == 4
    transport.let_go()
    thread.join()
    assert len(got[0]) == 64


@pytest.mark.parametrize("error", [ServerGone("gone"), Busy("full"), Draining("closing")])
def test_only_the_part_that_failed_is_asked_again(
    client: Client, transport: FakeTransport, error: LatentryError
) -> None:
    transport.faults = [None, error]
    result = client.generate("plain", seeds=range(24))
    assert result.seeds is not None
    assert result.seeds.tolist() == list(range(24))
    assert sorted(map(min, seeds_sent(transport))) == [0, 8, 8, 16]


def test_n_keeps_its_seeds_over_retries(client: Client, transport: FakeTransport) -> None:
    transport.faults = [ServerGone("gone"), ServerGone("gone")]
    result = client.generate("plain", n=5)
    assert result.seeds is not None
    assert seeds_sent(transport) == [result.seeds.tolist()] * 3


def test_by_default_a_lost_server_is_an_error_after_three_attempts(
    client: Client, transport: FakeTransport
) -> None:
    """They take 0.8 s at most; tests/clients/test_retry.py."""
    transport.question_faults = [ServerGone("gone")] * 9
    with pytest.raises(ServerGone, match="gone"):
        client.generate("plain", seeds=1)
    assert len(transport.question_faults) == 6


def test_a_part_that_fails_again_and_again_is_an_error_after_three_attempts(
    client: Client, transport: FakeTransport
) -> None:
    transport.faults = [Busy("full")] * 9
    with pytest.raises(Busy, match="full"):
        client.generate("plain", seeds=1)
    assert len(transport.requests) == 3


def test_a_server_that_goes_right_after_its_last_answer_has_answered(
    client: Client, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = transport.infer

    def draw_and_go(model: str, inputs: Arrays) -> Any:
        transport.question_faults = [ServerGone("gone")]
        return draw(model, inputs)

    monkeypatch.setattr(transport, "infer", draw_and_go)
    result = client.generate("plain", seeds=[4])
    assert transport.question_faults == []
    assert result.info == transport.infos["plain"]


def test_retry_for_s_waits_longer(transport: FakeTransport) -> None:
    transport.faults = [ServerGone("gone")] * 5
    with Client(transport=transport, retry_for_s=30) as client:
        assert len(client.generate("plain", seeds=1)) == 1


@pytest.mark.parametrize(
    "error", [BadRequest("no"), ServerFault("boom"), InvalidOutput("NaN", seeds=[3]), TimedOut("x")]
)
def test_other_errors_are_not_tried_again(
    client: Client, transport: FakeTransport, error: LatentryError
) -> None:
    transport.faults = [error]
    with pytest.raises(type(error), match=str(error)):
        client.generate("plain", seeds=1)
    assert len(transport.requests) == 1


def test_a_timeout_abandons_the_answer(client: Client, transport: FakeTransport) -> None:
    transport.holds = True
    with pytest.raises(TimedOut, match=r"no answer within timeout_s=0\.05"):
        client.generate("plain", seeds=1, timeout_s=0.05)
    transport.let_go()
    assert len(client.generate("plain", seeds=1, timeout_s=None)) == 1


def test_the_clients_own_timeout(transport: FakeTransport) -> None:
    transport.holds = True
    client = Client(transport=transport, timeout_s=0.05)
    with pytest.raises(TimedOut, match=r"timeout_s=0\.05"):
        client.generate("plain", seeds=1)


def test_arguments_are_checked_before_anything_is_sent(
    client: Client, transport: FakeTransport
) -> None:
    with pytest.raises(BadRequest, match="class_label is required"):
        client.generate("digits", seeds=1)
    with pytest.raises(BadRequest, match="model name '../x' is not allowed"):
        client.generate("../x", seeds=1)
    with pytest.raises(BadRequest, match="class_label is required"):
        client.stream("digits", seeds=1)
    with pytest.raises(NotFound, match="model 'other'"):
        client.generate("other", seeds=1)
    assert transport.requests == []


def test_a_large_result_is_sent_to_stream(client: Client) -> None:
    with pytest.raises(BadRequest, match=r"Use stream\(\.\.\.\)"):
        client.generate("plain", seeds=range(2**24))


def test_a_model_that_was_replaced_before_the_call_gives_its_new_identity(
    client: Client, transport: FakeTransport, info: InfoOf
) -> None:
    transport.infos["plain"] = info("plain", "2")
    transport.old_infos = [info("plain", "1")]
    result = client.generate("plain", seeds=1)
    assert (result.version, result.model_digest) == ("2", "digest-2")


def test_models_info_and_health(client: Client, transport: FakeTransport) -> None:
    assert client.models() == ["digits", "mapped", "plain"]
    labels = client.info("digits").spec.class_input
    assert labels is not None
    assert labels.classes == ("zero", "one", "two")
    assert client.health()
    assert client.health().reason == "serving digits, mapped, plain"
    transport.is_ready = False
    assert not client.health()
    assert "not every model is ready" in client.health().reason
    transport.question_faults = [ServerGone("nobody there")]
    assert client.health().reason == "nobody there"
    transport.is_ready = True
    transport.infos.clear()
    assert client.health().reason == "the server answers, but serves no generator"


def test_the_transport_is_closed_with_the_client(transport: FakeTransport) -> None:
    with Client(transport=transport):
        assert not transport.closed
    assert transport.closed


def test_a_transport_and_an_address_are_one_too_many(transport: FakeTransport) -> None:
    with pytest.raises(BadRequest, match="go with a server, not with transport"):
        Client("127.0.0.1:8001", transport=transport)


def test_chunks_carry_their_place_and_their_seeds(client: Client) -> None:
    chunks = list(client.stream("digits", seeds=range(20), class_label=1, chunk_size=6))
    assert [chunk.index for chunk in chunks] == [0, 6, 12, 18]
    assert [len(chunk) for chunk in chunks] == [6, 6, 6, 2]
    seeds = [chunk.seeds for chunk in chunks if chunk.seeds is not None]
    assert np.concatenate(seeds).tolist() == list(range(20))
    assert chunks[1].inputs["class_label"].tolist() == [1] * 6
    assert chunks[1].model_digest == "digest-1"


@pytest.mark.parametrize("image_format", ["png", "float"])
def test_streams_in_other_formats(client: Client, image_format: str) -> None:
    raw = client.generate("plain", seeds=range(20)).images
    chunks = list(client.stream("plain", seeds=range(20), format=image_format))
    assert np.array_equal(np.concatenate([chunk.images for chunk in chunks]), raw)
    assert (chunks[0].encoded is None) == (image_format == "float")


def test_a_long_stream_asks_when_what_came_was_taken(
    client: Client, transport: FakeTransport
) -> None:
    chunks = client.stream("plain", seeds=range(10_000))
    next(chunks)
    assert transport.stream_log == ["request"]
    assert sum(map(len, chunks)) == 10_000 - 8
    assert transport.stream_log == ["request"] * 3 + ["closed"]


def test_closing_a_stream_cancels_it(client: Client, transport: FakeTransport) -> None:
    chunks = client.stream("plain", seeds=range(100))
    next(chunks)
    chunks.close()
    assert transport.stream_log == ["request", "closed"]
    for _ in client.stream("plain", seeds=range(100)):
        break
    assert transport.stream_log[-1] == "closed"


@pytest.mark.parametrize(
    "error",
    [ServerGone("gone"), Busy("full"), Draining("closing"), TimedOut("late"), ServerFault("odd")],
)
def test_a_broken_stream_says_where_to_go_on(
    client: Client, transport: FakeTransport, error: LatentryError
) -> None:
    transport.stream_faults = [(3, error)]
    chunks = client.stream("plain", seeds=range(40))
    with pytest.raises(ServerGone, match="after 24 of 40 samples: .* Go on with samples 24") as e:
        for _ in chunks:
            pass
    assert e.value.resume_at == 24
    assert transport.stream_log[-1] == "closed"


def test_resume_goes_on_where_the_stream_broke(client: Client, transport: FakeTransport) -> None:
    expected = client.generate("plain", seeds=range(5000)).images
    transport.stream_faults = [(2, ServerGone("gone")), (1, Busy("full")), (600, ServerGone("x"))]
    chunks = list(client.stream("plain", seeds=range(5000), resume=True))
    assert np.array_equal(np.concatenate([chunk.images for chunk in chunks]), expected)
    assert [c.index for c in chunks] == np.cumsum([0, *map(len, chunks)])[:-1].tolist()


def breaks_off(transport: FakeTransport, after: int, *question_faults: LatentryError) -> None:
    """Have the next stream break after so many chunks, and the questions after it fail."""

    def broken(replies: Iterator[Reply]) -> Iterator[Reply]:
        transport.alter = iter
        yield from islice(replies, after)
        transport.question_faults = list(question_faults)
        raise ServerGone("gone")

    transport.alter = broken


@pytest.mark.parametrize("error", [ServerGone("b"), Draining("b"), TimedOut("b"), Busy("b")])
def test_resume_asks_about_the_model_again_and_again(
    client: Client, transport: FakeTransport, error: LatentryError
) -> None:
    breaks_off(transport, 2, error)
    assert sum(map(len, client.stream("plain", seeds=range(40), resume=True))) == 40
    breaks_off(transport, 2, error, error, error)
    with pytest.raises(ServerGone, match="after 16 of 40 samples: b") as e:
        list(client.stream("plain", seeds=range(40), resume=True))
    assert e.value.resume_at == 16
    assert e.value.__cause__ is error


@pytest.mark.parametrize("error", [NotFound("b"), ServerFault("b")])
def test_what_ends_a_resumption_says_where_to_go_on(
    client: Client, transport: FakeTransport, error: LatentryError
) -> None:
    breaks_off(transport, 2, error)
    with pytest.raises(ServerGone, match="after 16 of 40 samples: b") as e:
        list(client.stream("plain", seeds=range(40), resume=True))
    assert e.value.resume_at == 16


def test_nothing_breaks_before_the_first_images(client: Client, transport: FakeTransport) -> None:
    chunks = client.stream("plain", seeds=range(40), resume=True)
    transport.stream_faults = [(0, TimedOut("late"))]
    with pytest.raises(TimedOut, match="late"):
        next(chunks)


def test_resume_gives_up_in_the_end(client: Client, transport: FakeTransport) -> None:
    transport.stream_faults = [(2, ServerGone("a")), (0, ServerGone("b")), (0, ServerGone("c"))]
    with pytest.raises(ServerGone, match="after 16 of 99 samples: c") as e:
        list(client.stream("plain", seeds=range(99), resume=True))
    assert e.value.resume_at == 16


def test_a_stream_that_does_not_start_is_tried_again(
    client: Client, transport: FakeTransport
) -> None:
    transport.stream_faults = [(0, ServerGone("gone"))]
    assert sum(map(len, client.stream("plain", seeds=range(9)))) == 9
    transport.stream_faults = [(0, Busy("full"))] * 3
    with pytest.raises(Busy, match="full"):
        list(client.stream("plain", seeds=range(9)))


def test_a_fault_in_a_stream_is_raised_as_it_is(client: Client, transport: FakeTransport) -> None:
    transport.stream_faults = [(1, InvalidOutput("NaN", seeds=[9]))]
    with pytest.raises(InvalidOutput, match="NaN"):
        list(client.stream("plain", seeds=range(20), resume=True))


def test_a_stream_that_ends_early_is_broken(client: Client, transport: FakeTransport) -> None:
    transport.alter = lambda replies: islice(replies, 2)
    with pytest.raises(ServerGone, match="the server ended the stream early") as e:
        list(client.stream("plain", seeds=range(99)))
    assert e.value.resume_at == 16


def test_a_stream_out_of_order_is_the_servers_fault(
    client: Client, transport: FakeTransport
) -> None:
    def swapped(replies: Iterator[Reply]) -> Iterator[Reply]:
        first, second, *rest = replies
        yield from (second, first, *rest)

    transport.alter = swapped
    with pytest.raises(ServerFault, match=r"index \[8\]; 0 was next"):
        list(client.stream("plain", seeds=range(20)))
