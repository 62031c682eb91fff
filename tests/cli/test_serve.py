import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from latentry.cli.doctor import Finding
from latentry.cli.main import main


@dataclass
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs a command in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> Done:
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return call


def test_models_lists_what_a_user_needs_to_know(run: Run, repository: Path) -> None:
    done = run("models", "--repository", str(repository))
    assert done.returncode == 0
    for part in (
        "digits version 1",
        "an integer from 0 to 9",
        "32 x 32 x 1",
        "0=cat, 1=dog",
        "a number from -2 to 2, 1 if left out",
        "allowed 1e-04",
    ):
        assert part in done.stdout
    listed = json.loads(run("models", "--repository", str(repository), "--json").stdout)
    digits = next(entry for entry in listed["entries"] if entry["name"] == "digits")
    assert digits["model_digest"] in done.stdout
    assert digits["parity"]["tolerance"] == 1e-4


def test_models_remove_takes_a_version_away(run: Run, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "wide", tmp_path / "models" / "wide")
    done = run("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert done.returncode == 0
    assert not (tmp_path / "models" / "wide").exists()
    again = run("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert again.returncode == 1
    assert "wide is not in" in again.stderr
    assert "Traceback" not in again.stderr


def test_damage_is_listed_and_a_missing_repository_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "half" / "1").mkdir(parents=True)
    assert f"no entry: {tmp_path / 'half'}" in run("models", "--repository", str(tmp_path)).stdout
    missing = run("models", "--repository", str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert "is no folder; give the model repository with --repository" in missing.stderr


def test_models_finds_a_flipped_bit(run: Run, repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "wide", tmp_path / "wide")
    path = tmp_path / "wide" / "1" / "generator.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = run("models", "--repository", str(tmp_path))
    assert done.returncode == 1
    assert "damaged:" in done.stdout
    assert "generator.onnx was changed" in done.stdout


def test_doctor_speaks_json(run: Run) -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    names = [finding["name"] for finding in json.loads(done.stdout)]
    assert names[:2] == ["python", "numpy"]
    assert {"tritonserver", "perf_analyzer", "shared memory", "gpu"} <= set(names)


def test_a_models_recommendation_is_written_once_it_fits(
    run: Run, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "wide", tmp_path / "models" / "wide")
    listed = json.loads(run("models", "--repository", str(tmp_path / "models"), "--json").stdout)
    report = {
        "model": "wide",
        "model_digest": listed["entries"][0]["model_digest"],
        "slo": {"recommended": {"instances": 3, "max_batch_size": 8}},
    }

    def tune(content: object, name: str = "wide") -> Done:
        path = tmp_path / "report.json"
        path.write_text(json.dumps(content))
        options = ["--from", str(path), "--repository", str(tmp_path / "models")]
        return run("models", "tune", name, *options)

    assert "measured with 000000000000" in tune({**report, "model_digest": "0" * 64}).stderr
    assert "is about wide, not digits" in tune(report, "digits").stderr
    assert "recommends nothing" in tune({**report, "slo": None}).stderr
    assert "is no report of `latentry profile`" in tune([1]).stderr
    done = tune(report)
    assert done.returncode == 0
    assert "max_batch_size 8" in done.stderr
    assert "as before; restart its server" in done.stderr
    listed = json.loads(run("models", "--repository", str(tmp_path / "models"), "--json").stdout)
    assert listed["damaged"] == {}
    assert listed["entries"][0]["serving"]["instances"] == 3
    assert listed["entries"][0]["model_digest"] == report["model_digest"]


def test_a_batch_beyond_what_was_proved_is_not_served(run: Run, repository: Path) -> None:
    options = ["--models", "wide", "--max-batch-size", "17", "--port", "0", "--metrics-port", "0"]
    done = run("serve", "--repository", str(repository), *options)
    assert done.returncode == 1
    assert "17 is more than the export of wide proved (16)" in done.stderr


def test_doctor_installs_what_it_finds_already_there(run: Run, tmp_path: Path) -> None:
    done = run("doctor", "--install", "something")
    assert done.returncode == 2
    assert "perf-analyzer" in done.stderr


def test_doctor_cuts_nothing_and_swallows_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = 'pip install "latentry[serve,cpu]", then look again at ' + "/long" * 40
    findings = [Finding("engine", "error", "none", advice), Finding("gpu", "ok", "x" * 200)]
    monkeypatch.setattr("latentry.cli.doctor.examine", lambda: findings)
    monkeypatch.setenv("COLUMNS", "80")
    done = run("doctor")
    assert done.returncode == 1
    assert advice in done.stdout
    assert "x" * 200 in done.stdout
