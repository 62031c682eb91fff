"""Clients in other processes than the one that made them: forked, pickled, and of a DataLoader."""

import asyncio
import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arithmetic_server import ArithmeticServer, FakeTransport
from running_server import RunningServer, wait_until

from latentry.clients import AsyncClient, BadRequest, Client
from latentry.clients.transports.channel import Address
from latentry.clients.transports.codec import service_pb2
from latentry.clients.transports.grpc_library import library
from latentry.clients.transports.grpc_transport import AsyncGrpcTransport, GrpcTransport
from latentry.serving.runtime.local import LocalTransport

# Python 3.12 warns of every fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

WORKERS = Path(__file__).resolve().parents[2] / "support" / "client_workers.py"
CHILD_S = 60


def in_fork(check: Callable[[], object]) -> Any:
    """Run ``check`` in a forked child; return what it returns, or its error as a text."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run() -> None:
        try:
            theirs.send(check())
        except Exception as error:
            theirs.send(repr(error))

    child = context.Process(target=run)
    child.start()
    theirs.close()  # so that the pipe ends with the child, should it crash
    answered = ours.poll(CHILD_S)
    if not answered:
        child.kill()
    child.join(CHILD_S)
    assert answered, "the child hangs"
    assert child.exitcode == 0
    return ours.recv()


@contextmanager
def busy(*works: Callable[[], object]) -> Iterator[list[int]]:
    """Keep a thread at each of ``works`` until the block ends; give how often each was done."""
    counts = [0] * len(works)
    stop = threading.Event()

    def repeat(index: int) -> None:
        while not stop.is_set():
            works[index]()
            counts[index] += 1

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def first_pixels(client: Client, seeds: range = range(3)) -> list[int]:
    pixels: list[int] = client.generate("plain", seeds=seeds).images[:, 0, 0, 0].tolist()
    return pixels


def test_a_forked_child_draws_while_its_parent_is_busy(arithmetic_server: ArithmeticServer) -> None:
    client = Client(arithmetic_server.url, timeout_s=20)
    expected = first_pixels(client)

    def work() -> None:
        assert first_pixels(client) == expected

    def work_on_stream() -> None:
        assert sum(map(len, client.stream("plain", seeds=range(200)))) == 200

    def check() -> tuple[list[int], int, list[int]]:
        again = first_pixels(client)
        streamed = sum(map(len, client.stream("plain", seeds=range(30))))
        fresh = first_pixels(Client(arithmetic_server.url))
        client.close()
        return again, streamed, fresh

    with busy(work, work, work_on_stream) as counts:
        for _ in range(5):
            assert in_fork(check) == (expected, 30, expected)
        before = list(counts)
        wait_until(lambda: all(now > then for now, then in zip(counts, before, strict=True)))
    assert first_pixels(client) == expected


def test_a_stream_begun_in_the_parent_says_so_in_the_child(
    arithmetic_server: ArithmeticServer,
) -> None:
    client = Client(arithmetic_server.url)
    chunks = client.stream("plain", seeds=range(100))
    first = next(chunks)

    def go_on() -> int:
        return len(next(chunks))

    def leave() -> list[int]:
        chunks.close()
        return first_pixels(client)

    assert "begun before the process was forked" in in_fork(go_on)
    assert in_fork(leave) == first_pixels(client)
    assert len(first) + sum(map(len, chunks)) == 100


def test_what_was_closed_stays_closed_in_a_child(arithmetic_server: ArithmeticServer) -> None:
    client = Client(arithmetic_server.url)
    client.models()
    client.close()
    assert "this client is closed" in in_fork(client.models)


def test_a_child_that_cannot_load_a_second_copy_says_what_to_do(
    arithmetic_server: ArithmeticServer,
) -> None:
    client = Client(arithmetic_server.url)
    expected = first_pixels(client)

    def refuse(name: str, flags: int = 0) -> int:
        raise OSError(f"no room for {name}")

    def draw_without_room() -> list[int]:
        os.memfd_create = refuse  # in the child alone
        return first_pixels(client)

    said = in_fork(draw_without_room)
    assert "(no room for cygrpc); start worker processes by the method spawn or forkserver" in said
    assert first_pixels(client) == expected


@pytest.mark.parametrize("before", [None, "1"])
def test_what_others_say_of_grpc_and_forks_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    if before is not None:
        monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", before)
    library()
    assert os.environ.get("GRPC_ENABLE_FORK_SUPPORT") == before


def test_what_a_child_inherits_is_never_freed_there(arithmetic_server: ArithmeticServer) -> None:
    client = Client(arithmetic_server.url)
    client.models()
    transport = client._transport
    assert isinstance(transport, GrpcTransport)
    inherited = weakref.ref(transport._connection)

    def is_kept() -> bool:
        client.models()
        gc.collect()
        return inherited() is not None

    assert in_fork(is_kept) is True


def test_what_lies_in_cycles_at_a_fork_is_not_collected_in_the_child(
    arithmetic_server: ArithmeticServer,
) -> None:
    class Cycle:
        def __init__(self, client: Client) -> None:
            self.itself = self
            self.stream = client.stream("plain", seeds=range(1000))
            next(self.stream)
            ask = client._transport._connection.stub.ServerReady  # type: ignore[attr-defined]
            self.answers = [ask.future(service_pb2.ServerReadyRequest()) for _ in range(20)]

    gc.disable()
    try:
        lies_there = weakref.ref(Cycle(Client(arithmetic_server.url)))

        def draw_and_collect() -> bool:
            Client(arithmetic_server.url).models()
            gc.collect()
            return lies_there() is not None

        assert in_fork(draw_and_collect) is True
    finally:
        gc.enable()
    gc.collect()
    assert lies_there() is None  # the parent collects it as ever


def test_a_child_of_a_child(arithmetic_server: ArithmeticServer) -> None:
    client = Client(arithmetic_server.url)
    expected = first_pixels(client)
    assert in_fork(lambda: (first_pixels(client), in_fork(lambda: first_pixels(client)))) == (
        expected,
        expected,
    )


def test_an_asynchronous_client_in_a_forked_child(arithmetic_server: ArithmeticServer) -> None:
    client = AsyncClient(arithmetic_server.url)

    async def draw() -> int:
        return int((await client.generate("plain", seeds=5)).images[0, 0, 0, 0])

    async def draw_here_and_there() -> tuple[int, int, int]:
        here = await draw()
        return here, in_fork(lambda: asyncio.run(draw())), await draw()

    here, there, again = asyncio.run(draw_here_and_there())
    assert here == there == again


@pytest.mark.parametrize("ending", ["sys.exit(0)", "pass", "del client, chunks; gc.collect()"])
def test_a_child_that_ends_as_an_interpreter_does_ends(
    arithmetic_server: ArithmeticServer, ending: str
) -> None:
    code = (
        "import gc, os, sys\nfrom latentry.clients import Client\n"
        f"client = Client({arithmetic_server.url!r})\n"
        "chunks = client.stream('plain', seeds=range(99)); next(chunks)\n"
        "if child := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "assert len(client.generate('plain', seeds=range(3))) == 3\n" + ending
    )
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(command, timeout=CHILD_S, capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (0, b"")


def test_a_local_transport_in_a_forked_child(repository: Path) -> None:
    with Client(transport=LocalTransport(repository, ("wide",), threads=2)) as client:
        expected = client.generate("wide", seeds=3).images.tolist()
        assert in_fork(lambda: client.generate("wide", seeds=3).images.tolist()) == expected


def address_of(client: Client | AsyncClient) -> Address:
    transport = client._transport
    assert isinstance(transport, GrpcTransport | AsyncGrpcTransport)
    return transport._address


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_client_pickles_by_its_arguments(
    make: type[Client] | type[AsyncClient], tmp_path: Path
) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(b"pem")
    client = make("h:1", timeout_s=3, retry_for_s=7, tls=roots, headers={"x-token": "secret"})
    for again in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):
        assert again._transport is not client._transport
        assert address_of(again) == address_of(client)
        assert (again._timeout_s, again._policy) == (client._timeout_s, client._policy)
    assert "secret" not in repr(client)


def test_a_used_client_pickles_and_a_copy_is_on_its_own(
    arithmetic_server: ArithmeticServer,
) -> None:
    with Client(arithmetic_server.url) as client:
        expected = first_pixels(client)
        again = pickle.loads(pickle.dumps(client))
        assert first_pixels(again) == expected
        again.close()
        assert first_pixels(client) == expected


class Locked(FakeTransport):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_transport_that_does_not_pickle_is_named() -> None:
    with pytest.raises(BadRequest, match="transport, a Locked, does not pickle .* make the"):
        pickle.dumps(Client(transport=Locked()))


def test_one_asynchronous_client_in_two_event_loops(arithmetic_server: ArithmeticServer) -> None:
    client = AsyncClient(arithmetic_server.url)

    async def draw() -> int:
        return len(await client.generate("plain", seeds=5))

    async def draw_in_two() -> int:
        await draw()
        with pytest.raises(BadRequest, match="in use by another event loop; make one AsyncClient"):
            await asyncio.to_thread(asyncio.run, draw())
        return await draw()

    assert asyncio.run(draw_in_two()) == 1
    assert asyncio.run(draw()) == 1  # the other loop has ended
    asyncio.run(client.aclose())


@pytest.mark.server
@pytest.mark.parametrize(
    "method",
    ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("forkserver", "spawn"))],
)
def test_workers_of_a_data_loader_and_other_processes(triton: RunningServer, method: str) -> None:
    pytest.importorskip("torch", reason="the data loader is torch's")
    command = [sys.executable, str(WORKERS), triton.url, method]
    done = subprocess.run(command, timeout=240, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
