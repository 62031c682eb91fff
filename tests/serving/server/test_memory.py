"""What a server may take: bounded requests, and a limit above which it is started again."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
from running_server import LATENTRY, RunningServer, run_server, wait_until
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from latentry.clients import Client
from latentry.contract.errors import BadRequest, ServeError
from latentry.serving.server.memory import MemoryLimit, default_limit, parse_size, used_bytes

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("3k", 3072),
        ("800MiB", 800 * MIB),
        ("4G", 4 * GIB),
        ("1.5 gib", 3 * GIB // 2),
        ("2TB", 2**41),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "0.1", "GiB", "-1G", "4 PiB", "1e9", "4GiB!", "٤G", "1" * 40]
)
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="such as 800MiB or 4GiB"):
        parse_size(text)


def test_the_default_leaves_room_to_grow_but_not_beyond_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Machine:
        total = 100 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    monkeypatch.setattr("latentry.serving.server.memory._CONTAINER", Path("/nowhere"))
    assert default_limit(1 * GIB) == 3 * GIB
    assert default_limit(10 * GIB) == 20 * GIB
    assert default_limit(60 * GIB) == 90 * GIB
    assert default_limit(89 * GIB) == 89 * GIB * 21 // 20


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("latentry.serving.server.memory._CONTAINER", limit)
    limit.write_text(f"{GIB}\n")
    assert default_limit(100 * MIB) == GIB * 9 // 10
    limit.write_text("max\n")
    assert default_limit(100 * MIB) == 100 * MIB + 2 * GIB


def test_the_limit_is_settled_by_the_first_life() -> None:
    limit = MemoryLimit(None)
    limit.settle(GIB)
    most = limit.most
    limit.settle(9 * GIB)  # flooded before it was ready
    assert limit.most == most
    MemoryLimit(GIB).settle(GIB)  # as much as is allowed
    with pytest.raises(ServeError, match="takes 2048 MiB when it is ready, more than"):
        MemoryLimit(GIB).settle(2 * GIB)


def test_processes_that_are_gone_take_nothing() -> None:
    with subprocess.Popen(["sleep", "0"]) as process:
        gone = psutil.Process(process.pid)
    assert used_bytes([gone]) == 0
    assert used_bytes([psutil.Process(os.getpid()), gone]) > MIB


def test_memory_is_measured_where_it_may_be_as_much_as_asked() -> None:
    this = psutil.Process(os.getpid())
    assert used_bytes([this, this], 1000 * GIB) == 0
    assert used_bytes([this, this], MIB) == pytest.approx(used_bytes([this, this]), rel=0.01)


@pytest.mark.server
def test_a_text_that_means_nothing_is_refused(triton: RunningServer) -> None:
    with InferenceServerClient(triton.url) as raw:
        seed, text = InferInput("seed", [1, 1], "INT64"), InferInput("format", [1, 1], "BYTES")
        seed.set_data_from_numpy(np.array([[1]]))
        for size in (257, 2**20):
            text.set_data_from_numpy(np.array([[b"x" * size]], object))
            with pytest.raises(InferenceServerException, match=f"format holds {size:,} bytes"):
                raw.infer("wide", [seed, text])


@pytest.mark.server
def test_a_server_that_has_grown_is_drained_and_started_again(
    repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--models", "wide", "--instances", "1", "--most-memory", "600MiB")
    with run_server(repository, *options) as server, Client(server.url) as client:
        before = client.generate("wide", seeds=range(4)).images
        triton = server.triton_pid()
        with InferenceServerClient(server.url) as raw:
            seed, text = InferInput("seed", [1, 1], "INT64"), InferInput("format", [1, 1], "BYTES")
            seed.set_data_from_numpy(np.array([[1]]))
            text.set_data_from_numpy(np.array([[b"x" * 2**27]], object))
            for _ in range(4):
                with pytest.raises(InferenceServerException):
                    raw.infer("wide", [seed, text])
        wait_until(lambda: not psutil.pid_exists(triton))
        wait_until(client.health)
        np.testing.assert_array_equal(client.generate("wide", seeds=range(4)).images, before)
    said = re.sub(r"\s+", " ", capfd.readouterr().err)
    assert re.search(r"the server takes \d+ MiB, more than 600 MiB; draining it", said)


@pytest.mark.server
def test_a_limit_below_what_it_needs_is_refused(repository: Path) -> None:
    options = ["--models", "wide", "--instances", "1", "--most-memory", "20MiB"]
    done = subprocess.run(
        [str(LATENTRY), "serve", "--repository", str(repository), "--port", "0", "--metrics-port"]
        + ["0", *options],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(r"takes \d+ MiB when it is ready, more than --most-memory allows", done.stderr)
