"""Every kind of hang with the real limits: 20 of 20 within 15 s; idle, under load, by stress."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hangs import HANGS, load, seconds_until_mended
from misbehaving_models import LONG_BATCH
from running_server import RunningServer, run_server

from latentry.clients import Client
from latentry.serving.server.vitals import LONGEST_EXECUTE_S, SILENT_S

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.timeout(3_600)]

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "misbehaving_models.py"
REAL_LIMITS = (sys.executable, str(SCRIPT), str(SILENT_S), str(LONGEST_EXECUTE_S))
SOON = [hang for hang in HANGS if hang != "endless loop"]
ROUNDS, WITHIN_S = 20, 15.0


@pytest.fixture(scope="module")
def servers(repository: Path) -> Iterator[dict[str, RunningServer]]:
    """Return one server for each kind, with two processes of one model."""
    options = ("--models", "wide", "--instances", "2")
    with ExitStack() as stack:
        yield {
            hang: stack.enter_context(run_server(repository, *options, command=REAL_LIMITS))
            for hang in HANGS
        }


@contextmanager
def stress() -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("condition", ["idle", "under load", "beside stress"])
def test_hangs_are_found_soon(servers: dict[str, RunningServer], condition: str) -> None:
    def time_round(hang: str) -> float:
        with load(servers[hang]) if condition == "under load" else ExitStack():
            return seconds_until_mended(servers[hang], hang, timeout_s=120)

    with stress() if condition == "beside stress" else ExitStack(), ThreadPoolExecutor() as pool:
        rounds = [dict(zip(SOON, pool.map(time_round, SOON), strict=True)) for _ in range(ROUNDS)]
    slowest = {hang: max(times[hang] for times in rounds) for hang in SOON}
    logging.getLogger(__name__).info("%s, slowest in s: %s", condition, slowest)
    assert max(slowest.values()) < WITHIN_S, slowest


def test_an_endless_loop_is_found_within_its_bound(servers: dict[str, RunningServer]) -> None:
    seconds = seconds_until_mended(servers["endless loop"], "endless loop", timeout_s=200)
    assert LONGEST_EXECUTE_S - 5 < seconds < LONGEST_EXECUTE_S + 15


def test_an_honest_batch_of_a_minute_is_left_alone(repository: Path) -> None:
    options = ("--models", "wide", "--instances", "1")  # so that the canary has to wait
    with (
        run_server(repository, *options, command=REAL_LIMITS) as server,
        Client(server.url) as client,
    ):
        triton = server.triton_pid()
        client.generate("wide", seeds=LONG_BATCH + 60)
        assert server.triton_pid() == triton


def test_a_supervisor_that_was_stopped_finds_everybody_alive(repository: Path) -> None:
    with run_server(repository, "--models", "wide") as server, Client(server.url) as client:
        triton = server.triton_pid()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * SILENT_S)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(SILENT_S)
        assert server.triton_pid() == triton
        assert client.health()
