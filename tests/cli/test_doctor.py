import json
from pathlib import Path

import pytest
from doubles import RunCommand

from latentry.cli import doctor
from latentry.cli.doctor import Finding, examine


def find(name: str) -> Finding:
    return next(finding for finding in examine() if finding.name == name)


def test_this_machine_can_serve() -> None:
    assert not [finding for finding in examine() if finding.status == "error"]


def pretend_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: versions.get(package, ""))


def test_both_engines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"})
    engine = find("engine")
    assert engine.status == "error"
    assert "overwrite each other: pip uninstall both" in engine.advice


def test_no_engine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, {})
    assert find("engine").advice == 'pip install "latentry[cpu]"'


def test_the_placeholder_of_perf_analyzer_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "perf_analyzer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend_versions(monkeypatch, {"onnxruntime": "1", "perf-analyzer": "0.1.0"})
    finding = find("perf_analyzer")
    assert finding.status == "warning"
    assert "placeholder package 0.1.0" in finding.found
    assert "pip uninstall perf-analyzer; latentry doctor --install" in finding.advice


def test_a_perf_analyzer_that_does_not_run_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "perf_analyzer"
    program.write_text("#!/bin/sh\necho libb64 is missing; exit 127\n" + "#" * 200_000)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    finding = find("perf_analyzer")
    assert finding.status == "warning"
    assert "libb64 is missing" in finding.found
    assert f"remove {program}" in finding.advice


def test_numpy_2_beside_the_wheels_triton_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.4.0")
    assert 'pip install "numpy<2"' in next(doctor._numpy()).advice


def test_doctor_speaks_json(run_command: RunCommand) -> None:
    done = run_command("doctor", "--json")
    assert done.code == 0
    names = [finding["name"] for finding in json.loads(done.out)]
    assert names[:2] == ["python", "numpy"]
    assert {"tritonserver", "perf_analyzer", "shared memory", "gpu"} <= set(names)


def test_doctor_installs_what_it_finds_already_there(
    run_command: RunCommand, tmp_path: Path
) -> None:
    done = run_command("doctor", "--install", "something")
    assert done.code == 2
    assert "perf-analyzer" in done.err


def test_doctor_cuts_nothing_and_swallows_nothing(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = 'pip install "latentry[serve,cpu]", then look again at ' + "/long" * 40
    findings = [Finding("engine", "error", "none", advice), Finding("gpu", "ok", "x" * 200)]
    monkeypatch.setattr("latentry.cli.doctor.examine", lambda: findings)
    monkeypatch.setenv("COLUMNS", "80")
    done = run_command("doctor")
    assert done.code == 1
    assert advice in done.out
    assert "x" * 200 in done.out
