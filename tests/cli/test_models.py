import json
import shutil
from pathlib import Path

from doubles import Done, RunCommand


def test_models_lists_what_a_user_needs_to_know(run_command: RunCommand, repository: Path) -> None:
    done = run_command("models", "--repository", str(repository))
    assert done.code == 0
    for part in (
        "digits version 1",
        "an integer from 0 to 9",
        "32 x 32 x 1",
        "0=cat, 1=dog",
        "a number from -2 to 2, 1 if left out",
        "allowed 1e-04",
    ):
        assert part in done.out
    listed = json.loads(run_command("models", "--repository", str(repository), "--json").out)
    digits = next(entry for entry in listed["entries"] if entry["name"] == "digits")
    assert digits["model_digest"] in done.out
    (build,) = digits["builds"]
    assert build["parity"]["tolerance"] == 1e-4
    assert (build["name"], build["speed"]) == (digits["default_build"], 1.0)


def test_models_remove_takes_a_version_away(
    run_command: RunCommand, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "wide", tmp_path / "models" / "wide")
    done = run_command("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert done.code == 0
    assert not (tmp_path / "models" / "wide").exists()
    again = run_command("models", "remove", "wide", "--repository", str(tmp_path / "models"))
    assert again.code == 1
    assert "wide is not in" in again.err
    assert "Traceback" not in again.err


def test_damage_is_listed_and_a_missing_repository_is_an_error(
    run_command: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "half" / "1").mkdir(parents=True)
    assert (
        f"no entry: {tmp_path / 'half'}" in run_command("models", "--repository", str(tmp_path)).out
    )
    missing = run_command("models", "--repository", str(tmp_path / "nowhere"))
    assert missing.code == 1
    assert "is no folder; give the model repository with --repository" in missing.err


def test_models_finds_a_flipped_bit(
    run_command: RunCommand, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "wide", tmp_path / "wide")
    path = tmp_path / "wide" / "1" / "builds" / "onnxruntime-fp32" / "generator.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    done = run_command("models", "--repository", str(tmp_path))
    assert done.code == 1
    assert "damaged:" in done.out
    assert "generator.onnx was changed" in done.out


def test_a_models_recommendation_is_written_once_it_fits(
    run_command: RunCommand, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository / "wide", tmp_path / "models" / "wide")
    listed = json.loads(
        run_command("models", "--repository", str(tmp_path / "models"), "--json").out
    )
    report = {
        "model": "wide",
        "build_digest": listed["entries"][0]["builds"][0]["build_digest"],
        "slo": {"recommended": {"instances": 3, "max_batch_size": 8}},
    }

    def tune(content: object, name: str = "wide") -> Done:
        path = tmp_path / "report.json"
        path.write_text(json.dumps(content))
        options = ["--from", str(path), "--repository", str(tmp_path / "models")]
        return run_command("models", "tune", name, *options)

    missing = run_command("models", "tune", "wide", "--from", str(tmp_path / "no.json"))
    assert (missing.code, "no.json cannot be read: No such file" in missing.err) == (1, True)
    assert "no build with the digest 000000000000" in tune({**report, "build_digest": "0" * 64}).err
    assert "is about wide, not digits" in tune(report, "digits").err
    assert "recommends nothing" in tune({**report, "slo": None}).err
    assert "is no report of this version's `latentry profile`; profile again" in tune([1]).err
    done = tune(report)
    assert done.code == 0
    assert "max_batch_size 8" in done.err
    assert "as before; restart its server" in done.err
    listed = json.loads(
        run_command("models", "--repository", str(tmp_path / "models"), "--json").out
    )
    assert listed["damaged"] == {}
    (build,) = listed["entries"][0]["builds"]
    assert build["serving"]["instances"] == 3
    assert build["build_digest"] == report["build_digest"]
