"""What ``latentry serve`` does when something dies, is damaged, or is told to stop."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import LATENTRY, RunningServer, is_running, run_server, wait_until
from stored.changed_entries import rewrite_build, rewrite_goldens

from latentry.clients import Client, LatentryError, ServerGone
from latentry.serving.entries.goldens import read_goldens
from latentry.serving.entries.publishing import remove_entry
from latentry.serving.entries.repository import newest_entries
from latentry.serving.entries.sealed import file_record

pytestmark = pytest.mark.server


@pytest.fixture
def small(repository: Path, tmp_path: Path) -> Path:
    """Return a repository of its own with one small model."""
    folder = tmp_path / "model_repository"
    shutil.copytree(repository / "wide", folder / "wide")
    return folder


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep this module's private folders apart from those of the shared server."""
    home = tmp_path_factory.mktemp("runtime")
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(home)
    yield home / f"latentry-{os.getuid()}"
    if before is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = before


@pytest.fixture(scope="module")
def running(repository: Path, homes: Path) -> Iterator[RunningServer]:
    """Return a server that tests may break, as long as it comes back."""
    with run_server(repository, "--models", "wide,textures") as server:
        yield server


def refuse_to_serve(*options: str) -> str:
    """Return what ``latentry serve`` says when it refuses."""
    command = [str(LATENTRY), "serve", "--port", "0", "--metrics-port", "0", *options]
    environment = {**os.environ, "COLUMNS": "1000"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=environment
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_one_flipped_bit_is_refused_before_triton_starts(small: Path, homes: Path) -> None:
    (entry,) = newest_entries(small)
    path = entry.build_folder / "generator.onnx"
    data = bytearray(path.read_bytes())
    expected = file_record(bytes(data)).sha256
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = refuse_to_serve("--repository", str(small))
    for part in ("generator.onnx", expected, file_record(bytes(data)).sha256):
        assert part in message


def test_every_damaged_entry_is_named_at_once(small: Path, homes: Path) -> None:
    shutil.copytree(small / "wide", small / "second")
    for name in ("wide", "second"):
        (small / name / "1" / "perf_input.json").write_text("{}")
    message = refuse_to_serve("--repository", str(small))
    assert "wide/1/perf_input.json was changed" in message
    assert "second/1/perf_input.json was changed" in message


def test_a_half_written_entry_is_refused_and_a_stray_folder_is_not(
    small: Path, homes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (small / "notes").mkdir()
    with run_server(small) as server, Client(server.url) as client:
        assert client.models() == ["wide"]
    assert "is no entry" in re.sub(r"\s+", " ", capfd.readouterr().err)
    half = small / "wide" / "2"
    half.mkdir()
    (half / "perf_input.json").write_bytes(b"")
    assert "half-written" in refuse_to_serve("--repository", str(small))


def test_a_port_in_use_is_named(small: Path, homes: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refuse_to_serve("--repository", str(small), "--port", port)
    assert f"port {port} on 127.0.0.1 cannot be used" in message
    assert "--port" in message


def test_the_two_ports_must_differ(small: Path, homes: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ports = ("--port", port, "--metrics-port", port)
    assert "give another with --metrics-port" in refuse_to_serve("--repository", str(small), *ports)


def test_the_old_server_stays_on_loopback(small: Path, homes: Path) -> None:
    message = refuse_to_serve("--repository", str(small), "--address", "0.0.0.0")
    assert "--expose-old-server" in message


def test_a_model_that_is_not_there(small: Path, homes: Path) -> None:
    message = refuse_to_serve("--repository", str(small), "--models", "cats")
    assert "cats is not in" in message
    assert "there: wide" in message


def test_a_stream_of_a_model_that_is_not_there(small: Path, homes: Path) -> None:
    message = refuse_to_serve("--repository", str(small), "--streams", "wide,cats,dogs")
    assert "--streams names cats, dogs; served are wide" in message


def test_a_server_that_does_not_draw_its_goldens_never_becomes_ready(
    small: Path, homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (entry,) = newest_entries(small)
    goldens = read_goldens(entry)
    goldens.outputs["image"][3, 0, 0, 0] ^= 1
    rewrite_goldens(entry, goldens, entry.build.goldens.engine_class)
    message = refuse_to_serve("--repository", str(small))
    assert "wide does not draw its goldens: image of golden 3 differs most, by up to 1; " in message
    assert (tmp_path / "latentry-canary-wide.png").exists()


def test_one_level_of_another_engine_class_is_served_with_a_warning(
    small: Path, homes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (entry,) = newest_entries(small)
    goldens = read_goldens(entry)
    goldens.outputs["image"][3, 0, 0, 0] ^= 1
    rewrite_goldens(entry, goldens, "onnxruntime-0-fp32-none")
    with run_server(small) as server, Client(server.url) as client:
        assert client.health()
    assert "other engine class than its goldens" in re.sub(r"\s+", " ", capfd.readouterr().err)


def test_a_killed_triton_is_one_clear_error_and_comes_back(running: RunningServer) -> None:
    reference = None
    with Client(running.url) as client, Client(running.url, retry_for_s=30) as patient:
        reference = client.generate("textures", seeds=range(256)).images
        stream = client.stream("textures", seeds=range(100_000))
        next(stream)
        old_stubs, old_shm = running.stub_pids(), running.shared_memory()
        errors: list[tuple[float, Exception]] = []
        images: list[Any] = []
        asking = [threading.Event(), threading.Event()]
        killed_at = 0.0
        give_up_at = time.monotonic() + 120

        def ask_until_it_fails(begun: threading.Event) -> None:
            try:
                while time.monotonic() < give_up_at:
                    client.generate("textures", seeds=range(64))
                    begun.set()
            except LatentryError as error:
                errors.append((time.monotonic() - killed_at, error))

        def ask_patiently() -> None:
            images.append(patient.generate("textures", seeds=range(256)).images)

        threads = [threading.Thread(target=ask_until_it_fails, args=(e,)) for e in asking]
        for thread in threads:
            thread.start()
        assert all(begun.wait(60) for begun in asking)
        patient_thread = threading.Thread(target=ask_patiently)
        patient_thread.start()
        killed_at = time.monotonic()
        os.kill(running.triton_pid(), signal.SIGKILL)
        delivered: list[int] = []
        with pytest.raises(ServerGone, match="the stream broke off after") as broken:
            delivered.extend(chunk.index + len(chunk) for chunk in stream)
        assert broken.value.resume_at is not None
        assert broken.value.resume_at >= max(delivered, default=0)
        for thread in threads:
            thread.join()
        assert [type(error) for _, error in errors] == [ServerGone, ServerGone]
        # 0.8 s of attempts, and time for the threads of a busy machine.
        assert max(seconds for seconds, _ in errors) < 5
        patient_thread.join()
        np.testing.assert_array_equal(images[0], reference)
    assert not any(map(is_running, old_stubs))
    assert old_shm
    again = old_shm & running.shared_memory()
    assert not [name for name in again if not name.endswith("_signs")]


def test_a_stream_resumes_by_itself(running: RunningServer) -> None:
    with Client(running.url, retry_for_s=30) as client:
        reference = client.generate("wide", seeds=range(3_000)).images
        chunks = []
        for chunk in client.stream("wide", seeds=range(3_000), resume=True):
            chunks.append(chunk.images)
            if len(chunks) == 3:
                os.kill(running.triton_pid(), signal.SIGKILL)
        np.testing.assert_array_equal(np.concatenate(chunks), reference)


def test_a_killed_stub_takes_the_server_down_and_up_again(running: RunningServer) -> None:
    with Client(running.url) as client:
        assert client.health()
        os.kill(running.stub_pids()[0], signal.SIGKILL)
        wait_until(lambda: not client.health(), timeout_s=10)
        wait_until(client.health)
        client.generate("wide", seeds=range(100))


def test_a_model_that_was_removed_is_served_until_the_end(small: Path, homes: Path) -> None:
    with run_server(small) as server, Client(server.url, retry_for_s=60) as client:
        before = client.generate("wide", seeds=[1, 2]).images
        remove_entry(small, "wide")
        killed = server.triton_pid()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_running(killed))
        after = client.generate("wide", seeds=[1, 2]).images
        assert server.triton_pid() != killed
    np.testing.assert_array_equal(after, before)


def test_a_killed_supervisor_leaves_nothing_for_long(small: Path, homes: Path) -> None:
    before = set(homes.glob("*"))
    with run_server(small) as server:
        children = [server.triton_pid(), *server.stub_pids()]
        assert server.shared_memory()
        server.process.kill()
        wait_until(lambda: not any(map(is_running, children)), timeout_s=20)
    (left,) = set(homes.glob("*")) - before
    with run_server(small):  # the next start sweeps what was left
        assert not left.exists()
        assert not server.shared_memory()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_cleanly(
    small: Path, homes: Path, number: signal.Signals, code: int
) -> None:
    before = set(homes.glob("*"))
    with run_server(small) as server:
        children = [server.triton_pid(), *server.stub_pids()]
        assert server.shared_memory()
        server.process.send_signal(number)
        assert server.process.wait(timeout=60) == code
    assert not any(map(is_running, children))
    assert not server.shared_memory()
    assert set(homes.glob("*")) == before


def test_requests_under_way_are_answered_while_it_drains(small: Path, homes: Path) -> None:
    options = ("--instances", "1", "--drain-s", "30")
    with run_server(small, *options) as server, Client(server.url) as client:
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(client.generate("wide", seeds=range(64)))
        )
        with server.stopped("wide"):
            thread.start()
            wait_until(lambda: server.waiting("wide") == 3)  # the first of four is with the model
            server.process.terminate()
        thread.join()
        assert len(results[0]) == 64


def test_an_open_stream_does_not_keep_it_from_ending(small: Path, homes: Path) -> None:
    with run_server(small) as server, Client(server.url) as client:
        stream = client.stream("wide", seeds=range(1_000_000))
        next(stream)
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0  # --drain-s is 3 here
        with pytest.raises(LatentryError, match="broke off|shutting down"):
            list(stream)


@pytest.mark.acceptance
def test_overload_is_no_death(small: Path, homes: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (entry,) = newest_entries(small)
    serving = entry.build.serving.model_copy(update={"max_queue_size": 4, "instances": 1})
    rewrite_build(entry, serving=serving)
    outcomes: set[str] = set()
    with run_server(small) as server:
        stop = time.monotonic() + 12  # two rounds of the canary

        def ask() -> None:
            with Client(server.url) as client:
                while time.monotonic() < stop:
                    try:
                        client.generate("wide", seeds=range(16))
                        outcomes.add("drawn")
                    except LatentryError as error:
                        outcomes.add(type(error).__name__)

        threads = [threading.Thread(target=ask) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.process.poll() is None
    assert outcomes == {"drawn", "Busy"}
    assert "starting it again" not in re.sub(r"\s+", " ", capfd.readouterr().err)
