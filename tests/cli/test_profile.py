import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from running_server import LATENTRY, RunningServer

from latentry.cli import profile as profiling_commands
from latentry.cli.main import main
from latentry.contract.errors import ServerFault
from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.perf_analyzer.program import PerfAnalyzer, find_perf_analyzer
from latentry.profiling.points import Point
from latentry.profiling.report.files import read_profile

pytestmark = [pytest.mark.server, pytest.mark.acceptance]

needs_perf_analyzer = pytest.mark.skipif(
    find_perf_analyzer() is None, reason="no perf_analyzer on this machine"
)


Refused = Callable[..., tuple[int, str]]


def profile(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(LATENTRY), "profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Return what runs the command in this process; it gives the exit code and the errors."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["profile", *arguments])
        return code, capsys.readouterr().err

    return run


@needs_perf_analyzer
def test_a_profile_and_one_against_it(
    triton: RunningServer, repository: Path, tmp_path: Path
) -> None:
    options = ["digits", "--url", triton.url, "--repository", str(repository), "--quick"]
    options += ["--window-s", "0.2", "--windows", "3", "--concurrency", "1,2,4", "--most-s", "0.8"]
    first = profile(*options, "--rates", "30", "--batches", "1,8", "--out", str(tmp_path / "a"))
    assert first.returncode == 0, first.stderr
    assert "The knee is at" in first.stdout or "At most" in first.stdout
    assert "report.html" in first.stdout
    again = profile(
        *(*options, "--batches", "1,8", "--out", str(tmp_path / "b"), "--json"),
        *("--baseline", str(tmp_path / "a" / "report.json")),
    )
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)
    assert found["model"] == "digits"
    assert [point["value"] for point in found["points"]] == [1, 4, 30, 1]
    assert found["baseline"]["changes"]
    assert read_profile(tmp_path / "b" / "report.json").baseline is not None


@pytest.fixture(scope="module")
def answered(
    triton: RunningServer, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path, str]:
    """Return the arguments of a search, the folder with its first answer, and what it said."""
    arguments = ["digits", "--url", triton.url, "--repository", str(repository), "--slo", "p50=2s"]
    folder = tmp_path_factory.mktemp("answered")
    done = profile(*arguments, "--budget-s", "0", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return arguments, folder, done.stdout


def test_a_target_is_answered_for_the_running_server(
    answered: tuple[list[str], Path, str],
) -> None:
    _, folder, said = answered
    assert "The running server holds p50 <= 2000 ms at" in said
    report = read_profile(folder / "report.json")
    assert report.slo is not None
    assert report.slo.running.rate > 0
    assert report.slo.recommended is None


def test_an_interrupted_search_leaves_no_server(
    answered: tuple[list[str], Path, str], tmp_path: Path
) -> None:
    arguments, folder, _ = answered
    state = tmp_path / "slo-search.json"
    before = json.loads((folder / state.name).read_text())
    state.write_text(json.dumps({**before, "candidates": []}))  # it goes on from the first answer
    options = ["--budget-s", "60", "--out", str(tmp_path)]
    with subprocess.Popen(
        [str(LATENTRY), "profile", *arguments, *options], stderr=subprocess.PIPE, text=True
    ) as process:
        family = _wait_for_tritonserver(psutil.Process(process.pid))
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 130
        assert process.stderr is not None
        assert "the same command goes on from there" in process.stderr.read()
    psutil.wait_procs(family, timeout=60)
    assert not [member for member in family if member.is_running()]
    assert json.loads(state.read_text())["running"] == before["running"]


def _wait_for_tritonserver(process: psutil.Process) -> list[psutil.Process]:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        family = process.children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            if any(member.name() == "tritonserver" for member in family):
                return family
        time.sleep(0.2)
    raise AssertionError("no server was started")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--slo", "50ms"], 2, "write p99=50ms"),
        (["--concurrency", "1,x"], 2, "--concurrency '1,x' is not understood"),
        (["--batches", "1,64"], 1, "--batches 1,64: digits takes 1 to 32"),
        (["--baseline", "nothing.json"], 1, "nothing.json cannot be read"),
        (["--slo", "p50=1s", "--quick", "--rates", "5"], 2, "does not go with --rates, --quick"),
    ],
)
def test_a_wrong_option_says_what_is_right(
    triton: RunningServer,
    tmp_path: Path,
    refused: Refused,
    options: list[str],
    code: int,
    message: str,
) -> None:
    out = ("--out", str(tmp_path / "out"))
    found, errors = refused("digits", "--url", triton.url, *out, *options)
    assert found == code
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_found_before(
    triton: RunningServer, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out")
    code, errors = refused("digits", "--url", triton.url, "--out", out)
    assert code == 1
    assert errors.startswith("error: ")  # before anything was measured, of which it tells
    assert "cannot be written: Not a directory" in errors


def test_what_fails_takes_nothing_else_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ServerFault("no")

    monkeypatch.setattr(profiling_commands, "measure_streams", fail)
    monkeypatch.setattr(profiling_commands, "measure_client", fail)
    monkeypatch.setattr(profiling_commands, "measure_formats", lambda *_: ["formats"])
    profiled = ProfiledModel(PerfAnalyzer(Path("none"), {}), "127.0.0.1:1", "digits", Path("none"))
    slow = Point(kind="request_rate", value=0.5)
    fields, notes, failures = profiling_commands._measure_extras(profiled, [slow], lambda _: None)
    assert fields == {"cross_check": None, "formats": ["formats"]}
    assert "at 0.5 requests/s one window would take 40 s" in notes[0]
    assert [line.partition(": ")[2] for line in failures] == [
        *("streams: no", "the client's own share: no")
    ]


def test_without_perf_analyzer_the_way_to_it_is_said(
    triton: RunningServer, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, errors = refused("digits", "--url", triton.url, "--out", str(tmp_path))
    assert code == 1
    assert "latentry doctor --install perf-analyzer" in errors


def test_nobody_there_is_try_again_later(tmp_path: Path, refused: Refused) -> None:
    code, errors = refused("digits", "--url", "127.0.0.1:1", "--out", str(tmp_path / "out"))
    assert code == 75
    assert "no answer from 127.0.0.1:1" in errors
