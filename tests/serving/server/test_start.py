"""Odd places and times to start a server in: proxies, noexec, IPv6, deaths, cleaners, hang-ups."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_server import LATENTRY, RunningServer, run_server, wait_until

from latentry.clients import Client
from latentry.profiling.perf_analyzer.program import find_perf_analyzer

pytestmark = pytest.mark.server

SCRIPT = Path(__file__).resolve().parents[2] / "support" / "misbehaving_models.py"
MISBEHAVING = (sys.executable, str(SCRIPT), "10", "65")


@pytest.fixture
def small(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of its own with one small model."""
    shutil.copytree(repository / "wide", tmp_path / "model_repository" / "wide")
    return tmp_path / "model_repository"


@contextmanager
def starting(
    repository: Path, *options: str, command: tuple[str, ...] = (str(LATENTRY),), **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """Give a server that may not be ready yet."""
    command = (*command, "serve", "--repository", str(repository), "--json", "--instances", "1")
    command = (*command, "--port", "0", "--metrics-port", "0", "--drain-s", "1", *options)
    pipe = subprocess.PIPE
    variables = {**os.environ, "COLUMNS": "1000", **environment}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=120)


def when_ready(process: "subprocess.Popen[str]") -> RunningServer:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.stderr.read() if process.stderr else ""
    ready = json.loads(line)
    return RunningServer(process, ready["url"], ready["metrics_url"])


def test_a_proxy_of_the_environment_is_no_way_to_this_machine(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with run_server(small) as server, Client(server.url) as client:
        assert len(client.generate("wide", seeds=range(3))) == 3
        if tool := find_perf_analyzer():
            inputs = small / "wide" / "1" / "perf_input.json"
            report = tool.run(
                *("-m", "wide", "-u", server.url, "-i", "grpc", "--request-count", "50"),
                *("--input-data", str(inputs)),
            )
            assert "Throughput:" in report


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("-n 100", "only 100 files may be open; raise that (ulimit -n 1024)"),
        ("-v 4000000", "no more than 4,096,000,000 bytes of addresses"),
    ],
)
def test_limits_under_which_triton_names_no_cause_are_told_first(
    tmp_path: Path, limit: str, words: str
) -> None:
    command = f'ulimit {limit}; exec "$0" serve --repository "$1"'
    done = subprocess.run(
        ["sh", "-c", command, str(LATENTRY), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[0]
    assert "holds no entry" in done.stderr.splitlines()[1]


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR"])
def test_a_folder_that_starts_no_programs_is_named_at_once(
    small: Path, tmp_path: Path, variable: str
) -> None:
    folder = tmp_path / "noexec"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        variables: dict[str, Any] = {"XDG_RUNTIME_DIR": "", "TMPDIR": ""} | {variable: str(folder)}
        with starting(small, **variables) as process:
            assert process.wait(timeout=60) == 1
            assert process.stderr is not None
            assert f"{folder}/latentry-" in (said := process.stderr.read())
            assert "noexec" in said
            assert "XDG_RUNTIME_DIR" in said
        doctor = subprocess.run(
            [str(LATENTRY), "doctor", "--json"],
            env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = {finding["name"]: finding for finding in json.loads(doctor.stdout)}
        assert found["private folder"]["status"] == "error"
        assert str(folder) in found["private folder"]["found"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(
    not Path("/proc/net/if_inet6").exists() or "lo" not in Path("/proc/net/if_inet6").read_text(),
    reason="this machine has no IPv6 loopback",
)
def test_ipv6(small: Path) -> None:
    with run_server(small, "--address", "::1") as server, Client(server.url) as client:
        assert server.url.startswith("[::1]:")
        assert len(client.generate("wide", seeds=range(3))) == 3
        assert sum(len(chunk) for chunk in client.stream("wide", seeds=range(20))) == 20


def test_a_death_by_signal_during_the_first_start_is_no_end(small: Path) -> None:
    with starting(small) as process:
        wait_until(lambda: psutil.Process(process.pid).children())
        psutil.Process(process.pid).children()[0].kill()
        server = when_ready(process)
        with Client(server.url) as client:
            assert len(client.generate("wide", seeds=range(3))) == 3


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo no such luck; exit 3", "ended with exit code 3; it did not become ready 1 times"),
        ("echo no such luck; kill -9 $$", "ended with signal 9; it did not become ready 5 times"),
    ],
)
def test_what_never_starts_is_given_up(small: Path, tmp_path: Path, does: str, said: str) -> None:
    fake = tmp_path / "bin" / "tritonserver"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{does}\n")
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    with starting(small, PATH=path) as process:
        assert process.wait(timeout=120) == 1
        assert process.stderr is not None
        text = process.stderr.read()
    assert said in text
    assert text.rstrip().endswith("no such luck")


def test_deaths_while_it_serves_are_never_the_end(small: Path) -> None:
    with starting(small, command=MISBEHAVING) as process:
        for _ in range(6):
            when_ready(process)
            psutil.Process(process.pid).children()[0].kill()
        server = when_ready(process)
        with Client(server.url) as client:
            assert len(client.generate("wide", seeds=range(3))) == 3


def test_a_private_folder_that_was_removed_is_made_again(small: Path, tmp_path: Path) -> None:
    home = tmp_path / "runtime"
    home.mkdir()
    with starting(small, XDG_RUNTIME_DIR=str(home)) as process:
        server = when_ready(process)
        shutil.rmtree(home / f"latentry-{os.getuid()}")
        psutil.Process(server.triton_pid()).kill()
        server = when_ready(process)
        with Client(server.url) as client:
            assert len(client.generate("wide", seeds=range(3))) == 3
        (folder,) = (home / f"latentry-{os.getuid()}").iterdir()
        assert (folder / "lock").exists()
    assert not folder.exists()


def test_nohup_goes_on_when_the_terminal_is_closed(small: Path) -> None:
    with starting(small, command=("nohup", str(LATENTRY))) as process:
        server = when_ready(process)
        process.send_signal(signal.SIGHUP)
        with Client(server.url) as client:
            assert len(client.generate("wide", seeds=range(3))) == 3
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_without_nohup_a_closed_terminal_ends_it(small: Path) -> None:
    with starting(small) as process:
        when_ready(process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0


def test_a_start_takes_as_long_as_something_moves(small: Path) -> None:
    limits = {"SLOW_START_S": "7", "MOST_START_S": "5"}
    with starting(small, command=MISBEHAVING, **limits) as process:
        when_ready(process)
