"""The parts of benchmarks/peers/ that need neither the peers nor a quiet machine."""

import ast
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from peers import comparison, tables
from peers.catalogue import PEERS, ROOT, Peer
from peers.grpc_target import request
from peers.http_target import HttpTarget, body_place, get, post
from peers.measure import Answers, Load, Windows, compare
from peers.networks import CHECKED_SEEDS, IMAGE_BYTES, NETWORKS
from peers.tables import Measured, Round, Verdict
from tritonclient.grpc import service_pb2

from latentry.contract.kinds.formats import Format
from latentry.contract.spec import spec_from_json

BY_NAME = {peer.name: peer for peer in PEERS}


def load(images_per_s: float, latency_ms: float, *, due: float = 0.0) -> Load:
    return Load(
        images_per_s=images_per_s,
        due_per_s=due or images_per_s,
        latencies_ms=np.full(100, latency_ms),
        errors={},
        generator_share=0.02,
        server_cores=1.9,
        other_cores=0.01,
    )


def measured(name: str, images_per_s: float, p99: float, *, due: float = 100.0) -> Measured:
    one = Round(
        saturated=load(images_per_s, 60.0),
        offered=load(100.0, p99, due=due),
        idle=load(400.0, 2.0),
        memory_bytes=300 * 2**20,
    )
    answers = Answers(levels=0, share=0.0, stable=32, checked=32)
    return Measured(BY_NAME[name], answers=answers, capacity=images_per_s, rounds=[one, one, one])


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_complete(peer: Peer) -> None:
    assert peer.user_files
    for path in peer.user_files:
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")
    requirements = (peer.folder / "requirements.txt").read_text().splitlines()
    pins = [line for line in requirements if not line.startswith(("#", "-"))]
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in pins)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_setting_that_a_server_reads_is_given(peer: Peer) -> None:
    read = set(re.findall(r'environ\["(\w+)"\]', "".join(p.read_text() for p in peer.user_files)))
    for settings in peer.grid:
        assert read <= {*settings, "PORT", "HTTP_PORT"}


def test_the_benchmark_network_is_that_of_the_other_benchmark() -> None:
    assert NETWORKS["small"].multiply_adds == pytest.approx(105e6, rel=0.01)
    times = NETWORKS["heavy"].multiply_adds / NETWORKS["small"].multiply_adds
    assert times == pytest.approx(10, rel=0.05)


def test_the_spec_of_latentry_is_one() -> None:
    path = BY_NAME["latentry"].folder / "spec.json"
    spec = spec_from_json(path.read_text(), path.name)
    assert spec.row_bytes(Format.RAW) == IMAGE_BYTES


def test_lines_that_a_user_writes() -> None:
    python = '"""Doc."""\n\nimport os  # why\n\n\ndef f():\n    """Doc,\n    on."""\n    return (\n'
    python += "        1\n    )\n    # end\n"
    assert tables.code_lines(python, ".py") == 5
    assert tables.code_lines("# a\n\nb {\n  c: 1\n}\n", ".pbtxt") == 3
    ast.parse(python)


def test_figures_stand_in_a_row_for_each_peer() -> None:
    table = tables.figure_table(
        [measured("fastapi_tutorial", 200, 50), measured("latentry", 800, 9)]
    )
    _, _, tutorial, ours = table.splitlines()
    assert tutorial.startswith("| FastAPI, as its tutorial | 200 (200 - 200) | 1.0x | 50.0")
    assert ours.startswith("| Latentry | 800 (800 - 800) | 4.0x | 9.0 (9.0 - 9.0) |")
    assert ours.count("|") == 9


def test_percentiles_of_a_peer_that_does_not_keep_up_are_not_shown() -> None:
    table = tables.figure_table([measured("fastapi_tutorial", 200, 50, due=150)])
    assert "does not keep up" in table


def test_a_peer_that_failed_is_said_to_have_failed() -> None:
    failed = Measured(BY_NAME["ray"], failure="PeerFailed: it ended with 1: no port\nmore")
    assert "| Ray Serve, ONNX Runtime | failed |" in tables.figure_table([failed])
    assert "it ended with 1: no port" in tables.answer_table([failed])
    assert comparison.offered_rate([failed, measured("latentry", 1000, 9)]) == 600


def test_the_offered_load_follows_the_slowest_that_batches() -> None:
    peers = [
        measured("fastapi_tutorial", 100, 9),
        measured("ray", 200, 9),
        measured("triton", 900, 9),
    ]
    assert comparison.offered_rate(peers) == pytest.approx(120)


def test_verdicts_say_what_is_reached_and_what_is_not() -> None:
    peers = [
        measured("fastapi_tutorial", 200, 50),
        measured("fastapi_batch_onnx", 800, 8),
        measured("triton", 1000, 8),
        measured("pytriton", 2000, 1),
        measured("latentry", 900, 9),
    ]
    reached = {verdict.text: verdict.reached for verdict in tables.verdicts(peers)}
    assert reached == {
        "images/s over FastAPI, as its tutorial": True,
        "p99 over FastAPI, as its tutorial": True,
        "images/s over FastAPI, batching queue, ONNX Runtime": True,
        "p99 over FastAPI, batching queue, ONNX Runtime": False,
        "images/s over Triton, model.py by hand": False,
        "p99 over Triton, model.py by hand": False,
    }
    assert "**not reached**" in tables.verdict_table(peers)
    assert Verdict("p99", 1.1, 1.1, most=True).reached


def test_ratios_are_taken_round_by_round() -> None:
    ours, other = measured("latentry", 900, 9), measured("triton", 1000, 9)
    ours.rounds[1] = replace(ours.rounds[1], saturated=load(450, 60))
    other.rounds[1] = replace(other.rounds[1], saturated=load(500, 60))  # a disturbed round
    assert tables.ratio(ours, other, tables.saturated) == pytest.approx(0.9)


def test_answers_are_compared_seed_by_seed() -> None:
    reference = np.zeros((len(CHECKED_SEEDS), 64, 64, 3), np.uint8)
    images = {seed: {reference[0].tobytes()} for seed in CHECKED_SEEDS}
    assert compare(images, reference) == Answers(0, 0.0, 32, 32)
    other = reference[0].copy()
    other[0, 0, 0] = 1
    images[3] = {reference[0].tobytes(), other.tobytes()}
    answers = compare(images, reference)
    assert (answers.levels, answers.stable, answers.right) == (1, 31, True)
    images[3] = {(reference[0] + 2).tobytes()}
    assert not compare(images, reference).right


def test_enough_is_measured_at_low_rates_and_not_too_much() -> None:
    windows = Windows()
    assert windows.open_seconds(10_000) == 5.0
    assert windows.open_seconds(125) == pytest.approx(8.0)
    assert windows.open_seconds(1) == 10.0


def test_the_page_gets_its_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end figures -->\nafter\n")
    tables.replace_between(page, "figures", "new")
    tables.replace_between(page, "figures", "newer")
    assert page.read_text() == "before\n<!-- figures -->\nnewer\n<!-- end figures -->\nafter\n"
    with pytest.raises(ValueError, match="no place for other"):
        tables.replace_between(page, "other", "")
    assert "<!-- figures -->" in (ROOT / "docs" / "peers.md").read_text()


def test_a_request_to_triton_carries_its_seed() -> None:
    message = service_pb2.ModelInferRequest.FromString(request(2**32 - 1))
    assert message.inputs[0].name == "seed"
    assert np.frombuffer(message.raw_input_contents[0], np.int64).tolist() == [2**32 - 1]


def test_the_body_of_an_answer_is_found() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    assert body_place(head + b"abc") == (len(head), 3)
    assert body_place(head[:20]) == (None, 0)
    with pytest.raises(ValueError, match="the server answered 503 Busy"):
        body_place(b"HTTP/1.1 503 Busy\r\n\r\n")
    with pytest.raises(ValueError, match="no Content-Length"):
        body_place(b"HTTP/1.1 200 OK\r\n\r\n")


@contextmanager
def http_server(*answers: bytes) -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """Answer one request after another on one connection, in pieces."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                for text in answers:
                    asked.append(connection.recv(4096))
                    connection.sendall(text[:30])
                    connection.sendall(text[30:])

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname(), asked
        thread.join()


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nserver: x\r\n\r\n" % len(body) + body


def test_the_http_target_asks_and_takes_answers_in_pieces() -> None:
    ended: SimpleQueue[Exception | None] = SimpleQueue()
    images: dict[int, bytes] = {}
    with http_server(answer(b"a" * 100_000), answer(b"short")) as (address, asked):
        target = HttpTarget(
            address, get("/images/{seed}"), iter((5, 6, 7)),
            image_bytes=100_000, connections=1, on_image=images.__setitem__,
        )  # fmt: skip
        target.send(ended.put)
        assert ended.get(timeout=60) is None
        target.send(ended.put)
        assert "5 bytes instead of an image" in str(ended.get(timeout=60))
    target.close()
    assert images == {5: b"a" * 100_000}
    assert asked[0].startswith(b"GET /images/5 HTTP/1.1\r\n")


def test_an_answer_that_never_comes_is_an_error() -> None:
    ended: SimpleQueue[Exception | None] = SimpleQueue()
    with http_server(b"") as (address, asked):
        target = HttpTarget(address, post("/predict"), iter((5,)), image_bytes=1, connections=1)
        target.send(ended.put)
        assert isinstance(ended.get(timeout=60), ConnectionError)
    target.close()
    assert asked[0].endswith(b'Content-Length: 10\r\n\r\n{"seed":5}')
