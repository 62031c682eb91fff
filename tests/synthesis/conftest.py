from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs.command import DIGITS, Answer, Synthesize
from jobs.runs import (
    JobRun,
    local_run,
    run_here,
    tree,
    write_job,
)

from latentry.cli.main import main
from latentry.clients import Client
from latentry.serving.runtime.local import LocalTransport


@pytest.fixture
def synthesize(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> Synthesize:
    """Run ``latentry synthesize`` in an empty folder; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Answer:
        command = ["synthesize", *map(str, arguments)]
        if "--help" not in command and "status" not in command:
            command += ["--draw-with", "local", "--repository", str(repository)]
        if "--workers" not in command and "--help" not in command and "status" not in command:
            command += ["--workers", "1"]
        code = main(command)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def made(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole job of digits; no test may change it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "job.toml").write_text(DIGITS)
    command = [
        "synthesize",
        folder / "job.toml",
        "--out",
        folder / "digits",
        "--draw-with",
        "local",
    ]
    options = ["--repository", repository, "--workers", 1, "--json"]
    assert main([str(word) for word in [*command, *options]]) == 0
    return folder / "digits"


@pytest.fixture(scope="module")
def client(repository: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(repository, threads=1)) as client:
        yield client


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return what writes a filter function into this folder and names it."""
    import sys

    monkeypatch.setattr(sys, "path", sys.path.copy())

    def write_hook(name: str, verdict: str) -> str:
        Path(f"{name}.py").write_text(
            "def judge(images, seeds, inputs):\n"
            f"    return [{verdict} for place, seed in enumerate(seeds.tolist())]\n"
        )
        return f'[[filters]]\nkind = "python"\nfunction = "{name}:judge"\n'

    return write_hook


@pytest.fixture
def job(repository: Path, tmp_path: Path) -> JobRun:
    """Return a run of 24 small shards in the command's own process."""
    return local_run(write_job(tmp_path), tmp_path / "out", repository)


@pytest.fixture
def crowd(job: JobRun) -> JobRun:
    """Return the same with two worker processes."""
    return JobRun(job.job, job.out, (*job.options[:-1], "2"))


@pytest.fixture(scope="session")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same job, made without any trouble."""
    folder = tmp_path_factory.mktemp("whole")
    run_here(write_job(folder), folder / "out", repository)
    return folder / "out"


@pytest.fixture(scope="session")
def expected(whole: Path) -> dict[str, bytes]:
    """Return its files."""
    return tree(whole)
