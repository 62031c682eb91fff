"""Going on in a folder with another job, engine or encoder than it was begun with."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from jobs.runs import (
    DIGITS,
    run_here,
    stamps,
    tree,
    write_job,
)
from onnx import TensorProto, helper

from latentry.contract.errors import JobError
from latentry.serving.runtime import local
from latentry.synthesis.job import job_from_file
from latentry.synthesis.records import JOB_FILE
from latentry.synthesis.run import run_job
from latentry.synthesis.shard_making import Origin
from latentry.synthesis.verify import verify_job


def refusal(job: Path, out: Path, repository: Path) -> str:
    """Return why a job does not go on, having checked that nothing was touched."""
    before = stamps(out)
    with pytest.raises(JobError, match="was started differently") as refused:
        run_here(job, out, repository)
    assert stamps(out) == before
    return str(refused.value)


@pytest.fixture
def half(repository: Path, tmp_path: Path, whole: Path) -> Path:
    """Return the folder of the job with half of its shards."""
    out = tmp_path / "out"
    out.mkdir()
    for path in whole.glob("*.json"):
        if path.name == JOB_FILE or path.name < "shard-000012":
            for file in {path, path.with_suffix(".tar")} & set(whole.iterdir()):
                shutil.copy(file, out)
    (out / "index.json").unlink(missing_ok=True)
    return out


def test_another_engine_class_is_refused(
    repository: Path, tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "expected_class", lambda build: "tensorrt-10-fp16")
    message = refusal(write_job(tmp_path), half, repository)
    assert "engine_class was" in message
    assert 'here it is "tensorrt-10-fp16"' in message


def test_any_engine_class_is_allowed_where_the_job_says_so(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_job(tmp_path, 'engine_class = "any"\n' + DIGITS), tmp_path / "any"
    origin = Origin(repository=repository)
    run_job(job_from_file(path), origin, str(out), limit=120)
    monkeypatch.setattr(local, "expected_class", lambda build: "tensorrt-10-fp16")
    assert run_here(path, out, repository).samples == 240
    records = [json.loads(path.read_bytes()) for path in out.glob("shard-*.json")]
    assert sum(record["engine_class"] == "tensorrt-10-fp16" for record in records) == 12
    assert not verify_job(str(out), origin).problems


def test_another_encoder_is_refused(
    repository: Path, tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zlib.ZLIB_RUNTIME_VERSION", "9.9")
    assert 'here it is "9.9"' in refusal(write_job(tmp_path), half, repository)


def test_a_changed_job_is_refused(repository: Path, tmp_path: Path, half: Path) -> None:
    changed = DIGITS.replace("= 24", "= 25")
    message = refusal(write_job(tmp_path, changed), half, repository)
    assert "job.samples.per_class.0-9 was 24, here it is 25" in message


def write_classifier(path: Path, bias: float) -> None:
    """Write a network that takes every image for class 3."""
    weight = np.zeros((1, 10), np.float32)
    shift = np.full(10, bias, np.float32)
    shift[3] = 9
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "shift"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(shift, "shift"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_a_changed_classifier_is_refused(repository: Path, tmp_path: Path) -> None:
    text = 'model = "digits"\n[samples]\nper_class = { "3" = 40 }\n[output]\nshard_size = 10\n'
    text += '[[filters]]\nkind = "classifier"\nfile = "classifier.onnx"\n'
    path, out = write_job(tmp_path, text), tmp_path / "out"
    write_classifier(tmp_path / "classifier.onnx", 0)
    run_job(job_from_file(path), Origin(repository=repository), str(out), limit=20)
    before = hashlib.sha256((tmp_path / "classifier.onnx").read_bytes()).hexdigest()
    write_classifier(tmp_path / "classifier.onnx", 1)
    message = refusal(path, out, repository)
    assert f'files.classifier.onnx was "{before}"' in message
    write_classifier(tmp_path / "classifier.onnx", 0)
    assert run_here(path, out, repository).samples == 40


def test_a_damaged_job_file_is_named(repository: Path, tmp_path: Path, half: Path) -> None:
    (half / JOB_FILE).write_text("{")
    with pytest.raises(JobError, match=rf"{half}/{JOB_FILE} is damaged"):
        run_here(write_job(tmp_path), half, repository)


def test_a_damaged_shard_does_not_get_into_the_contact_sheet(
    repository: Path, tmp_path: Path, half: Path, expected: dict[str, bytes]
) -> None:
    shard = half / "shard-000000.tar"
    shard.write_bytes(b"x" * shard.stat().st_size)
    run_here(write_job(tmp_path), half, repository)
    assert tree(half) == expected
