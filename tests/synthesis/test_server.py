"""A synthesis job while its server dies, hangs, is busy, or comes back as another."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from jobs.runs import JobRun, end, interrupt_and_go_on, local_run, run_here, tree, write_job
from running_server import RunningServer, run_server, wait_until
from stored.changed_entries import rewrite_build

from latentry.clients import Client, LatentryError
from latentry.serving.entries.repository import newest_entries

pytestmark = pytest.mark.server

TEXT = """
model = "digits"
[samples]
per_class = { "0-9" = 120 }
[output]
shard_size = 50
"""


@pytest.fixture(scope="module")
def narrow(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository whose models have short queues and one instance."""
    folder = tmp_path_factory.mktemp("narrow") / "model_repository"
    for name in ("digits", "breaking"):
        shutil.copytree(repository / name, folder / name)
    for entry in newest_entries(folder):
        serving = entry.build.serving.model_copy(update={"max_queue_size": 4, "instances": 1})
        rewrite_build(entry, serving=serving)
    return folder


@pytest.fixture(scope="module")
def running(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server that tests may break, as long as it comes back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        with run_server(narrow) as server:
            yield server


@pytest.fixture(scope="module")
def expected(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of the job, made without a server."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_job(folder, TEXT), folder / "out", repository)
    return tree(folder / "out")


@pytest.fixture
def job(running: RunningServer, tmp_path: Path) -> JobRun:
    """Return a run of the job with two workers that ask the server."""
    return server_run(write_job(tmp_path, TEXT), tmp_path / "out", running.url)


def server_run(job: Path, out: Path, url: str) -> JobRun:
    """Return the run of a job with a server."""
    return JobRun(job, out, ("--draw-with", "server", "--url", url, "--workers", "2"))


def is_busy(url: str) -> bool:
    """Whether a server's queue is full just now."""
    with Client(url, retry_for_s=0) as client:
        try:
            client.generate("digits", seeds=range(256), class_label=1)
        except LatentryError as error:
            return type(error).__name__ == "Busy"
        return False


def test_a_killed_triton_and_a_full_queue_change_nothing(
    job: JobRun, running: RunningServer, expected: dict[str, bytes]
) -> None:
    process = job.start()
    try:
        wait_until(lambda: is_busy(running.url))
        for share in (2, 12):
            wait_until(lambda: len(job.records()) >= share)  # noqa: B023
            os.kill(running.triton_pid(), signal.SIGKILL)
            wait_until(lambda: not Client(running.url).health())
            assert process.poll() is None
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, message
    assert tree(job.out) == expected


def test_a_server_that_hangs_for_a_while(
    job: JobRun, running: RunningServer, expected: dict[str, bytes]
) -> None:
    process = job.start()
    hanging = psutil.Process(running.triton_pid())
    try:
        wait_until(lambda: len(job.records()) >= 3)
        hanging.suspend()
        with pytest.raises(AssertionError, match="it did not happen in time"):
            wait_until(lambda: process.poll() is not None, timeout_s=3)
        if hanging.is_running():
            hanging.resume()
        _, message = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, message
    assert tree(job.out) == expected


def test_ctrl_c_leaves_nothing_behind_with_a_server(
    job: JobRun, expected: dict[str, bytes]
) -> None:
    interrupt_and_go_on(job, expected)


def test_nan_is_replaced_as_without_a_server(
    running: RunningServer, repository: Path, tmp_path: Path
) -> None:
    path = write_job(tmp_path, 'model = "breaking"\n[samples]\nseeds = "0-299"\n')
    files = server_run(path, tmp_path / "server", running.url).finish()
    assert files == local_run(path, tmp_path / "local", repository).finish()
    rejected = json.loads(files["shard-000000.json"])["rejected"]
    assert rejected[0]["reason"] == "NaN or infinity"


def test_a_server_that_comes_back_as_another_model_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sample_generators

    from latentry.export.publish import Source, export_generator

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before, after = tmp_path / "before", tmp_path / "after"
    shutil.copytree(repository / "wide", before / "wide")
    (entry,) = newest_entries(before)
    module = sample_generators.build_wide()
    next(module.parameters()).data += 0.01
    source = Source("wide", entry.spec, module.eval(), "wide", "0" * 64)
    export_generator(source, after, max_batch_size=16)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    text = 'model = "wide"\n[samples]\nseeds = "0-99999"\n[output]\nshard_size = 500\n'
    job = server_run(write_job(tmp_path, text), tmp_path / "out", f"127.0.0.1:{port}")
    with run_server(before, "--port", port) as server:
        process = job.start()
        try:
            wait_until(lambda: job.records())
            server.process.kill()
            server.process.wait()
            with run_server(after, "--port", port):
                _, message = process.communicate(timeout=240)
        finally:
            end(process)
    assert process.returncode == 1
    (renewed,) = newest_entries(after)
    assert f"wide has the model digest {renewed.digest} now" in message
    assert f"this job draws from {entry.digest}" in message
    digest = entry.digest.encode()
    for record in job.records():
        assert digest in record.with_suffix(".tar").read_bytes()
    assert not list(job.out.glob(".tmp-*"))
