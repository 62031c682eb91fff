import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles import RunCommand

from latentry.cli import doctor
from latentry.cli.doctor import Finding, examine
from latentry.contract.errors import ServeError


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


def test_what_the_processor_is_fast_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_flags", lambda: frozenset(["avx2", "avx_vnni"]))
    assert find("processor").found.endswith("; int8 by avx_vnni; bf16 by none")


def test_openvino_is_an_engine_beside_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_versions(monkeypatch, {"onnxruntime": "1.31.1", "openvino": "2026.4.1"})
    engines = [f.found for f in doctor._engine()]
    assert engines == ["onnxruntime 1.31.1", "openvino 2026.4.1"]


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


def test_doctor_installs_nothing_else(run_command: RunCommand) -> None:
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


def nothing_found(*_: object) -> None:
    return None


@pytest.mark.parametrize(
    ("place", "value", "name", "status", "words"),
    [
        ("_SERVED_PYTHONS", (), "python", "warning", "use Python 3.11 or 3.12"),
        ("platform.libc_ver", lambda: ("", ""), "glibc", "warning", "needs Linux with glibc"),
        ("platform.libc_ver", lambda: ("glibc", "2.17"), "glibc", "error", "2.28 or later"),
        ("find_perf_analyzer", nothing_found, "perf_analyzer", "warning", "latentry doctor --inst"),
        ("os.access", lambda *_: False, "shared memory", "error", "mount a tmpfs there"),
        (
            "shutil.disk_usage",
            lambda _: SimpleNamespace(free=2**20),
            "shared memory",
            "warning",
            "--shm-size=1g",
        ),
    ],
)
def test_what_a_machine_lacks_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, place: str, value: object, name: str, status: str, words: str
) -> None:
    monkeypatch.setattr(f"latentry.cli.doctor.{place}", value)
    finding = find(name)
    assert (finding.status, words in finding.advice) == (status, True)


def test_a_python_without_its_shared_library_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("latentry.cli.doctor.Path", lambda *_: tmp_path)
    finding = next(doctor._libpython())
    assert (finding.status, "or a Python built with --enable-shared" in finding.advice) == (
        "error",
        True,
    )


def test_the_placeholder_alone_is_no_perf_analyzer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_perf_analyzer", nothing_found)
    pretend_versions(monkeypatch, {"onnxruntime": "1", "perf-analyzer": "0.1.0"})
    finding = find("perf_analyzer")
    assert finding.found == "the placeholder package 0.1.0, which does nothing"
    assert finding.advice.startswith("pip uninstall perf-analyzer; latentry doctor --install")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_gpu_is_told_and_none_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: is_there)
    (finding,) = doctor._gpu()
    assert (finding.status, "driver is loaded" in finding.found) == ("ok", is_there)


def test_the_vendors_server_comes_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    findings = {finding.name: finding for finding in examine()}
    assert findings["tritonserver"].found == str(program)
    assert "private folder" not in findings  # Triton of the container starts nothing from there


def test_without_a_server_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ServeError("no tritonserver; get one")

    monkeypatch.setattr(doctor, "find_tritonserver", missing)
    findings = {finding.name: finding for finding in examine()}
    assert findings["tritonserver"].advice == "no tritonserver; get one"
    assert findings["private folder"].status == "error"


def test_what_serving_needs_and_is_not_installed_is_no_second_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "latentry.serving.server.folder", None)
    assert not [finding for finding in examine() if finding.name == "private folder"]


def test_doctor_installs_nothing_where_a_perf_analyzer_is(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "perf_analyzer"
    says = "echo 'Perf Analyzer Version 2.51.0 (commit none)'; exit"
    program.write_text(f"#!/bin/sh\n{says}\n" + "#" * 200_000)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = run_command("doctor", "--install", "perf-analyzer")
    assert done.code == 0
    assert done.err.strip() == f"perf_analyzer 2.51.0: {program}"
