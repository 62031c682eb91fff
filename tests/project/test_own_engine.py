"""An engine that nobody here knows, in one file of a package: built, served, pinned, verified."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_server import LATENTRY, RunningServer, run_server

from latentry.clients import Client

pytestmark = [pytest.mark.server, pytest.mark.acceptance, pytest.mark.timeout(300)]

# The same as ours with other options, so that its bits are its own.
ENGINE = '''
"""ONNX Runtime without its optimisations."""

import os
import sys

from latentry.serving.runtime.engines import EngineMissing
from latentry.serving.runtime.engines.engine_class import engine_class


class Plain:
    precisions = ("fp32",)

    def expect(self, precision):
        if os.environ.get("NO_PLAIN"):
            raise EngineMissing("plain needs what this machine lacks")
        if os.environ.get("MOVED_PLAIN") and "triton_python_backend_utils" in sys.modules:
            return "plain-moved"
        return f"plain-{engine_class()}"

    def make(self, network, precision, feeds):
        return network

    def load(self, artefact, build, *, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(artefact, options, ["CPUExecutionProvider"])
        return Running(session, os.environ.get("OTHER_PLAIN") or self.expect(build.precision))


class Running:
    def __init__(self, session, engine_class):
        self.session, self.engine_class = session, engine_class

    def run(self, inputs, outputs):
        return dict(zip(outputs, self.session.run(list(outputs), dict(inputs))))
'''
JOB = """
model = "wide"
[samples]
seeds = "0-39"
[output]
shard_size = 10
"""
PLAIN = "plain-fp32"


@pytest.fixture(scope="module")
def project(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a package that brings the engine, and a repository with its build."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "plain_engine.py").write_text(ENGINE)
    (folder / "job.toml").write_text(JOB)
    facts = folder / "plain_engine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-engine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[latentry.engines]\nplain = plain_engine:Plain\n")
    shutil.copytree(repository / "wide", folder / "model_repository" / "wide")
    before = hashes(folder / "model_repository")
    said = json.loads(run(folder, "build", "wide", "--engine", "plain", "--no-default", "--json"))
    assert (said["build"], said["default"]) == (PLAIN, False)
    after = hashes(folder / "model_repository")
    added = after.keys() - before.keys()
    assert {path.rpartition("/")[0] for path in added} == {f"wide/1/builds/{PLAIN}"}
    assert {path: after[path] for path in before} == before  # no other byte changed
    return folder


@pytest.fixture(scope="module")
def plain(project: Path) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(project))
        options = ["--instances", "1", "--build", f"wide={PLAIN}"]
        with run_server(project / "model_repository", *options) as server:
            yield server


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command where the package is found; return what it said."""
    done = subprocess.run(
        [str(LATENTRY), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "1000", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_models_lists_both_builds(project: Path) -> None:
    (entry,) = json.loads(run(project, "models", "--json"))["entries"]
    assert [build["name"] for build in entry["builds"]] == ["onnxruntime-fp32", PLAIN]
    assert entry["default_build"] == "onnxruntime-fp32"
    ours, theirs = entry["builds"]
    assert ours["build_digest"] != theirs["build_digest"]
    assert theirs["parity"]["engine_class"].startswith("plain-onnxruntime-")
    said = run(project, "models")
    assert "build onnxruntime-fp32 default, parity " in said
    assert f"build {PLAIN} parity " in said


def test_it_is_served_where_it_is_asked_for(
    project: Path, plain: RunningServer, tmp_path: Path
) -> None:
    with Client(plain.url) as client:
        result = client.generate("wide", seeds=range(9))
        streamed = np.concatenate([part.images for part in client.stream("wide", seeds=range(9))])
        assert (result.build, result.info.build) == (PLAIN, PLAIN)
        assert result.engine_class.startswith("plain-onnxruntime-")
        (path, *_) = result.save(tmp_path)
    np.testing.assert_array_equal(streamed, result.images)
    with Image.open(path) as picture:
        assert picture.info["latentry:build"] == PLAIN
        assert picture.info["latentry:build_digest"] == result.build_digest
    shown = json.loads(run(project, "generate", "wide", "--url", plain.url, "--seeds", "1",
                           "--out", str(tmp_path / "one"), "--json"))  # fmt: skip
    assert shown["build_digest"] == result.build_digest


def test_a_job_stays_with_the_build_that_it_began_with(
    project: Path, plain: RunningServer, tmp_path: Path
) -> None:
    local = ["--draw-with", "local", "--repository", "model_repository", "--workers", "1"]
    remote = ["--draw-with", "server", "--url", plain.url, "--workers", "1"]
    out = str(tmp_path / "out")
    run(project, "synthesize", "job.toml", "--out", out, "--limit", "10", *local)
    said = run(project, "synthesize", "job.toml", "--out", out, *remote, code=1)
    assert "wide is run by the build plain-fp32 now (" in said
    assert "Serve that: `latentry serve --build wide=onnxruntime-fp32`" in said
    run(project, "models", "default", "wide", PLAIN)
    try:
        run(project, "synthesize", "job.toml", "--out", out, *local)
        run(project, "synthesize", "verify", out, *local[:4], "--samples", "40")
        facts = json.loads((tmp_path / "out" / "job.json").read_text())
        assert facts["build"] == "onnxruntime-fp32"
        # A new one takes what is the default now.
        other = str(tmp_path / "other")
        run(project, "synthesize", "job.toml", "--out", other, *remote)
        run(project, "synthesize", "verify", other, *local[:4], "--samples", "40")
        assert json.loads((tmp_path / "other" / "job.json").read_text())["build"] == PLAIN
        said = run(project, "synthesize", "verify", out, *remote[:4], "--samples", "1", code=1)
        assert "wide is run by the build plain-fp32 now (" in said
        assert "latentry serve --build wide=onnxruntime-fp32" in said
    finally:
        run(project, "models", "default", "wide", "onnxruntime-fp32")


def test_a_job_may_name_its_build(project: Path, tmp_path: Path) -> None:
    (project / "pinned.toml").write_text(f'build = "{PLAIN}"\n{JOB}')
    options = ["--draw-with", "local", "--repository", "model_repository", "--workers", "1"]
    run(project, "synthesize", "pinned.toml", "--out", str(tmp_path / "out"), *options)
    assert json.loads((tmp_path / "out" / "job.json").read_text())["build"] == PLAIN
    (project / "gone.toml").write_text(f'build = "gone-fp32"\n{JOB}')
    said = run(
        project, "synthesize", "gone.toml", "--out", str(tmp_path / "gone"), *options, code=1
    )
    assert "has no build 'gone-fp32'; it has onnxruntime-fp32, plain-fp32" in said


def test_a_profile_is_of_its_build(project: Path, plain: RunningServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with Client(plain.url) as client:
        info = client.info("wide")
    content = {
        "model": "wide",
        "build_digest": info.build_digest,
        "slo": {"recommended": {"max_batch_size": 8}},
    }
    report.write_text(json.dumps(content))
    own = tmp_path / "model_repository"
    shutil.copytree(project / "model_repository", own)
    run(project, "models", "tune", "wide", "--from", str(report), "--repository", str(own))
    (entry,) = json.loads(run(project, "models", "--repository", str(own), "--json"))["entries"]
    sizes = {build["name"]: build["serving"]["max_batch_size"] for build in entry["builds"]}
    assert sizes == {"onnxruntime-fp32": 16, PLAIN: 8}


def serve(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Serve until ready, and stop then; return how it ended and what it said."""
    process = subprocess.Popen(
        [
            *(str(LATENTRY), "serve", "--repository", str(folder / "model_repository"), "--json"),
            *("--port", "0", "--metrics-port", "0", "--instances", "1", "--streams", "none"),
            *options,
        ],
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "1000", **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, line + errors


def test_where_it_is_missing_fp32_is_served_unless_it_was_asked_for(project: Path) -> None:
    run(project, "models", "default", "wide", PLAIN)
    try:
        code, said = serve(project, NO_PLAIN="1")
        assert code == 0
        assert '"wide": "onnxruntime-fp32"' in said
        assert (
            "wide is run by onnxruntime-fp32 instead of its default plain-fp32: plain needs "
            "what this machine lacks" in said
        )
        code, said = serve(project, "--build", f"wide={PLAIN}", NO_PLAIN="1")
        assert (code, "plain needs what this machine lacks" in said) == (1, True)
    finally:
        run(project, "models", "default", "wide", "onnxruntime-fp32")


def test_an_engine_of_another_class_than_expected_is_not_served(project: Path) -> None:
    code, said = serve(project, "--build", f"wide={PLAIN}", OTHER_PLAIN="plain-9")
    assert code == 1
    assert "is of the engine class plain-9 once it is loaded" in said


def test_what_was_replaced_since_the_server_began_is_not_served(project: Path) -> None:
    code, said = serve(project, "--build", f"wide={PLAIN}", MOVED_PLAIN="1")
    assert code == 1
    assert "this process runs the engine class plain-moved and the server tells plain-onnx" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["wide=gone-fp32"], "has no build 'gone-fp32'; it has onnxruntime-fp32, plain-fp32"),
        (["cats=plain-fp32"], "--build names cats; served are wide"),
        (["plain-fp32"], "--build plain-fp32 is not understood; say MODEL=BUILD"),
        (["wide=plain-fp32", "wide=plain-fp32"], "say MODEL=BUILD once for a model"),
    ],
)
def test_builds_that_are_not_there(project: Path, options: list[str], words: str) -> None:
    flags = [flag for option in options for flag in ("--build", option)]
    code, said = serve(project, *flags)
    assert code in (1, 2)
    assert words in said


def test_a_build_is_removed_and_the_default_follows(project: Path, tmp_path: Path) -> None:
    own = tmp_path / "model_repository"
    shutil.copytree(project / "model_repository", own)
    repository = ["--repository", str(own)]
    said = run(project, "build", "wide", "--engine", "plain", *repository, code=1)
    assert "has the build plain-fp32 already; `latentry models remove wide --build" in said
    run(project, "models", "default", "wide", PLAIN, *repository)
    run(project, "models", "remove", "wide", "--build", PLAIN, *repository)
    (entry,) = json.loads(run(project, "models", *repository, "--json"))["entries"]
    assert (entry["default_build"], len(entry["builds"])) == ("onnxruntime-fp32", 1)
    said = run(project, "models", "remove", "wide", "--build", PLAIN, *repository, code=1)
    assert "has no build 'plain-fp32'; it has onnxruntime-fp32" in said
    said = run(
        project, "models", "remove", "wide", "--build", "onnxruntime-fp32", *repository, code=1
    )
    assert "is what the other builds are judged by" in said


def test_engines_and_precisions_that_are_not_there(project: Path) -> None:
    said = run(project, "build", "wide", "--engine", "magic", code=1)
    assert "engine 'magic' is not installed here; there: onnxruntime, openvino, plain" in said
    said = run(project, "build", "wide", "--engine", "plain", "--precision", "int8", code=1)
    assert "plain does not run int8; it runs fp32" in said
    said = run(project, "build", "wide", "--engine", "onnxruntime", code=1)
    assert "has the build onnxruntime-fp32 already" in said
