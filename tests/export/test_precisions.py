"""Builds in fewer bits by the engines that come with Latentry, made, proved and drawn with."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentry.cli.main import main
from latentry.clients import Client
from latentry.contract.errors import BadRequest, ExportRefused
from latentry.export.build import build_model
from latentry.export.gates.report import REPORT_FILE
from latentry.export.proofs import build_proof
from latentry.serving.entries.manifests import FP32
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines import EngineMissing, engine_class, openvino_provider
from latentry.serving.runtime.engines.quantization import quantized
from latentry.serving.runtime.local import LocalTransport

# Untrained: their pictures have hardly any contrast, and no noise is nothing beside that.
LENIENT = {"frechet": 10.0}
FEW = 400


@pytest.fixture
def own(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with a small model; 400 samples are enough for the gate."""
    monkeypatch.setattr("latentry.export.gates.gate.LEAST_SAMPLES", FEW)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model_repository"
    shutil.copytree(repository / "wide", folder / "wide")
    return folder


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets the speed that is measured: on small models it is anything."""
    return lambda value: monkeypatch.setattr(build_proof, "relative_speed", lambda *_: value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_eight_bits_are_proved_and_draw_alone_as_in_a_batch(
    own: Path, speed: Callable[[float], None], engine: str
) -> None:
    speed(1.5)
    entry = build_model(own, "wide", engine, "int8", bounds=LENIENT)
    build = entry.build
    verify_entry(entry)
    assert build.name == f"{engine}-int8"
    assert build.gate is not None
    assert build.gate.samples >= FEW
    assert build.gate.bounds["frechet"] == 10
    assert build.gate.found["worst_psnr_db"] > 25
    assert build.parity.tolerance is None
    page = (entry.build_folder / REPORT_FILE).read_text()
    assert "It passes." in page
    with (
        Client(transport=LocalTransport(own)) as client,
        Client(transport=LocalTransport(own, build=FP32)) as plain,
    ):
        drawn = client.generate("wide", seeds=range(9))
        assert drawn.build == f"{engine}-int8"  # it is the default
        assert re.fullmatch(rf"{engine}-[0-9.]+-int8-\w+", drawn.engine_class)
        for seed in (0, 5, 8):
            alone = client.generate("wide", seeds=seed)
            np.testing.assert_array_equal(alone.images[0], drawn.images[seed])
        apart = drawn.images.astype(int) - plain.generate("wide", seeds=range(9)).images
    assert 0 < np.abs(apart).max() < 40


def test_the_same_network_is_quantised_into_the_same_bytes(repository: Path) -> None:
    network = (repository / "wide/1/builds/onnxruntime-fp32/generator.onnx").read_bytes()
    z = np.random.RandomState(0).randn(16, 16).astype(np.float32)
    made = {quantized(network, lambda _: {"z": z}) for _ in range(2)}
    assert len(made) == 1
    assert len(made.pop()) < len(network)


def test_openvino_draws_fp32_as_an_export_must(own: Path) -> None:
    build = build_model(own, "wide", "openvino", "fp32", may_be_default=False).build
    assert build.gate is None
    assert max(build.parity.differences.values()) <= 1e-4


def test_fewer_bits_that_gain_nothing_are_refused(
    own: Path, speed: Callable[[float], None]
) -> None:
    speed(0.9)
    before = sorted(own.rglob("*"))
    with pytest.raises(ExportRefused, match="draws 0.90 times as many samples .* nothing was add"):
        build_model(own, "wide", "onnxruntime", "int8", bounds=LENIENT)
    assert sorted(own.rglob("*")) == before


def test_a_build_that_the_gate_refuses_leaves_nothing(
    own: Path, speed: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    speed(2.0)
    before = sorted(own.rglob("*"))
    command = ["build", "wide", "--engine", "onnxruntime", "--precision", "int8"]
    code = main([*command, "--bound", "worst_psnr_db=120", "--repository", str(own)])
    assert code == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "worst_psnr_db is" in err
    assert "at least 120 is allowed" in err
    page = own.parent / "latentry-gate-wide-onnxruntime-int8.html"
    assert str(page) in err
    assert "It does not pass" in page.read_text()
    assert sorted(own.rglob("*")) == before


def test_the_command_tells_what_the_gate_found(
    own: Path, speed: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    speed(2.0)
    command = ["build", "wide", "--engine", "onnxruntime", "--precision", "int8", "--json"]
    assert main([*command, "--bound", "frechet=10", "--repository", str(own)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["gate"]["bounds"]["frechet"] == 10
    assert said["default"]
    assert main(["models", "--repository", str(own)]) == 0
    assert "worst of 400 samples" in " ".join(capsys.readouterr().out.split())


def test_a_build_is_measured_again_over_other_seeds(
    own: Path,
    tmp_path: Path,
    speed: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed(2.0)
    built = build_model(own, "wide", "onnxruntime", "int8", bounds=LENIENT).build
    before = sorted(own.rglob("*"))
    page = tmp_path / "quality.html"
    command = ["evaluate", "wide", "--repository", str(own), "--samples", "400"]
    assert main([*command, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert built.gate is not None
    assert same["found"] == built.gate.found
    assert same["bounds"]["frechet"] == 10  # what it was made with
    assert main([*command, "--first-seed", "5000", "--out", str(page), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["found"] != same["found"]
    assert "It passes." in page.read_text()
    assert main([*command, "--bound", "worst_psnr_db=120"]) == 1
    assert "too far: worst_psnr_db is" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "--build", FP32, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"]["worst_psnr_db"] == 150
    assert sorted(own.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "99"], "samples is 99; it takes 100 to 50000"),
        (["--samples", "50001"], "samples is 50001; it takes 100 to 50000"),
        (["--first-seed", "-1"], "first_seed is -1; it takes 0 to"),
        (["--bound", "worst=3"], "there is no bound 'worst'"),
        (["--build", "other-int8"], "other-int8"),
    ],
)
def test_what_cannot_be_measured_is_told(
    own: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "wide", "--repository", str(own), *arguments]) != 0
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [("worst_psnr_db", "takes NAME=NUMBER"), ("worst_psnr_db=nan", "takes a finite number")],
)
def test_a_bound_that_is_no_number_is_refused(
    own: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "wide", "--engine", "onnxruntime", "--precision", "int8"]
    assert main([*command, "--bound", text, "--repository", str(own)]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_what_this_processor_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = openvino_provider.OpenVinoProvider()
    monkeypatch.setattr(openvino_provider, "cpu_flags", lambda: frozenset(["avx2"]))
    with pytest.raises(EngineMissing, match="bf16 needs a processor with amx_bf16 or avx512_bf16"):
        provider.expect("bf16")
    monkeypatch.setattr(openvino_provider, "cpu_flags", lambda: frozenset(["avx512_bf16"]))
    assert "-bf16-" in provider.expect("bf16")
    monkeypatch.setattr(openvino_provider, "installed_openvino", lambda: None)
    with pytest.raises(EngineMissing, match="openvino is not installed here: pip install"):
        provider.expect("fp32")
    with pytest.raises(BadRequest, match="openvino runs fp32, bf16, int8, not fp8"):
        provider.expect("fp8")


def test_instructions_by_which_bits_differ_are_in_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = frozenset(["avx512f", "avx512_vnni", "avx2", "avx512_bf16"])
    monkeypatch.setattr(engine_class, "cpu_flags", lambda: flags)
    assert engine_class.level_of("fp32") == "avx512"
    assert engine_class.level_of("int8") == "avx512_avx512_vnni"
    assert engine_class.level_of("bf16") == "avx512_avx512_bf16"
