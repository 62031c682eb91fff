import json
import os
import shutil
import subprocess
from pathlib import Path

from running_server import LATENTRY


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "200"}
    command = [str(LATENTRY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_models_lists_what_a_user_needs_to_know(repository: Path) -> None:
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


def test_models_remove_takes_a_version_away(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "wide", tmp_path / "models" / "wide")
    done = run("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert done.returncode == 0
    assert not (tmp_path / "models" / "wide").exists()
    again = run("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert again.returncode == 1
    assert "wide is not in" in again.stderr
    assert "Traceback" not in again.stderr


def test_damage_is_listed_and_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "half" / "1").mkdir(parents=True)
    assert f"no entry: {tmp_path / 'half'}" in run("models", "--repository", str(tmp_path)).stdout
    missing = run("models", "--repository", str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert "is no folder; give the model repository with --repository" in missing.stderr


def test_models_finds_a_flipped_bit(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "wide", tmp_path / "wide")
    path = tmp_path / "wide" / "1" / "generator.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = run("models", "--repository", str(tmp_path))
    assert done.returncode == 1
    assert "damaged:" in done.stdout
    assert "generator.onnx was changed" in done.stdout


def test_doctor_speaks_json() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0
    names = [finding["name"] for finding in json.loads(done.stdout)]
    assert names[:2] == ["python", "numpy"]
    assert {"tritonserver", "perf_analyzer", "shared memory", "gpu"} <= set(names)
