import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z
from torch import Tensor, nn

from latentry.contract.errors import CheckpointError
from latentry.training.architectures import build
from latentry.training.checkpoint import (
    Checkpoint,
    checkpoint_digest,
    load_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)

CONFIG: dict[str, JsonValue] = {
    "z_dim": 4,
    "width": 2,
    "channels": 1,
    "num_classes": 3,
    "resolution": 8,
}


def make_checkpoint() -> Checkpoint:
    spec = make_spec([z(4), classes("a", "b", "c")], [image(8, 8, 1)])
    return Checkpoint(name="tiny", architecture="conditional_dcgan", config=CONFIG, spec=spec)


@pytest.fixture
def module() -> nn.Module:
    return build("conditional_dcgan", CONFIG)


@pytest.fixture
def folder(tmp_path: Path, module: nn.Module) -> Path:
    folder = tmp_path / "tiny"
    save_checkpoint(folder, make_checkpoint(), module.state_dict())
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "generator.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_was_saved_is_loaded(folder: Path, module: nn.Module) -> None:
    checkpoint, loaded = load_checkpoint(folder)
    assert checkpoint == make_checkpoint()
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_checkpoint_is_replaced_whole_and_leaves_nothing_beside_it(
    folder: Path, module: nn.Module
) -> None:
    (folder / "old.txt").write_text("of the older checkpoint")
    save_checkpoint(folder, make_checkpoint(), module.state_dict(), samples_png=b"picture")
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["generator.json", "samples.png", "weights.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path: Path, module: nn.Module) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no checkpoint, so it is not replaced"):
        save_checkpoint(tmp_path, make_checkpoint(), module.state_dict())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_weights_that_are_nan_are_not_saved(tmp_path: Path, module: nn.Module) -> None:
    nn.init.constant_(module.get_parameter("last.bias"), float("nan"))
    with pytest.raises(CheckpointError, match=r"NaN or infinite: last\.bias: 1 of 1 values"):
        save_checkpoint(tmp_path / "tiny", make_checkpoint(), module.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is no folder; a checkpoint is a folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["generator.json", "weights.safetensors"])
def test_a_missing_file_is_named_and_what_is_there_listed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {name} \(it holds .*; a checkpoint needs"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(colour="red"), "colour: there is no such key"),
        (lambda content: content.pop("spec"), "spec: Field required"),
        (lambda content: content.update(format=1), "format: Input should be 2"),
        (lambda content: content.update(name="../up"), r"model name '\.\./up' is not allowed"),
        (
            lambda content: content["spec"].update(inputs=[]),
            "spec.inputs: there are 0; 1 to 64 are taken",
        ),
    ],
)
def test_a_wrong_generator_json_is_explained(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_json(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "folder", "loop"])
@pytest.mark.parametrize("name", ["generator.json", "weights.safetensors"])
def test_what_is_no_regular_file_is_refused_and_nothing_waits(
    folder: Path, name: str, kind: str
) -> None:
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else kind)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: "):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"config": ' * 100_000, " " * 2**25])
def test_a_generator_json_that_is_deep_or_huge_is_one_line(folder: Path, content: str) -> None:
    (folder / "generator.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_generator_json_that_is_no_json_is_explained(folder: Path) -> None:
    (folder / "generator.json").write_text('{"format": 1,')
    with pytest.raises(CheckpointError, match="does not describe a checkpoint: .*Invalid JSON"):
        load_checkpoint(folder)


def test_a_config_far_larger_than_the_weights_takes_no_memory(folder: Path) -> None:
    change_json(folder, lambda content: content["config"].update(width=65536))
    with pytest.raises(CheckpointError, match=r"last\.weight: found .*expected .*65536, 1, 4"):
        load_checkpoint(folder)


def test_every_tensor_that_does_not_fit_is_listed(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["last.weight"]
        tensors["extra"] = torch.zeros(3)
        tensors["norms.0.scale.weight"] = torch.zeros(3, 9)
        tensors["last.bias"] = torch.zeros(1, dtype=torch.float64)

    change_weights(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "last.weight: missing, expected float32 [2, 1, 4, 4]" in message
    assert "extra: float32 [3] is not expected" in message
    assert "norms.0.scale.weight: found float32 [3, 9], expected float32 [3, 2]" in message
    assert "last.bias: found float64 [1], expected float32 [1]" in message
    assert "check the architecture and its config" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    change_weights(folder, lambda tensors: tensors["last.weight"].fill_(value))
    with pytest.raises(CheckpointError, match=r"last\.weight: 32 of 32 values"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kept", [0.99, 0.2])
def test_a_truncated_file_is_told_by_its_size(folder: Path, kept: float) -> None:
    path = folder / "weights.safetensors"
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(CheckpointError, match="truncated: it has .* and its header declares"):
        load_checkpoint(folder)


@pytest.mark.parametrize("length", [2**62, 200_000_000])
def test_an_absurd_header_length_is_refused_without_reading_it(folder: Path, length: int) -> None:
    (folder / "weights.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": 1}',
        b"[1, 2]  ",
        b'{"a": {"dtype": "F4"}}',
        b"{nope}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, NaN]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
    ],
)
def test_a_damaged_header_is_refused(folder: Path, header: bytes) -> None:
    content = struct.pack("<Q", len(header)) + header
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged safetensors header|is no safetensors file"):
        load_checkpoint(folder)


def test_overlapping_tensors_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if header[name]["shape"] == [3, 2]]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(CheckpointError, match="is damaged: .*copy it again"):
        load_checkpoint(folder)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_and_its_code_never_runs(
    folder: Path, tmp_path: Path, protocol: int
) -> None:
    trap = pickle.dumps({"weight": _Trap(tmp_path / "executed")}, protocol)
    (folder / "weights.safetensors").write_bytes(trap)
    with pytest.raises(CheckpointError, match="is a pickle; it is never opened because pickles"):
        load_checkpoint(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_save_is_refused(folder: Path, module: nn.Module, zipped: bool) -> None:
    path = folder / "weights.safetensors"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"convert it with safetensors\.torch\.save_file"):
        load_checkpoint(folder)


def test_a_safetensors_file_that_starts_like_a_pickle_is_taken(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    path = tmp_path / "weights.safetensors"
    for padding in range(0, 512, 8):
        save_file(module.state_dict(), path, metadata={"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    load_weights(module, path)


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("module.", "nn.DataParallel"), ("_orig_mod.", "torch.compile")]
)
def test_the_weights_of_a_wrapped_module_are_told(
    tmp_path: Path, prefix: str, wrapper: str
) -> None:
    module = nn.Linear(3, 2)
    wrapped = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    save_file(wrapped, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=f"holds the weights of {wrapper}: every name begins"):
        load_weights(module, tmp_path / "w.safetensors")


def test_load_weights_serves_any_module(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    other = nn.Linear(2, 3)
    load_weights(other, tmp_path / "mine.safetensors")
    assert torch.equal(module.weight, other.weight)
    with pytest.raises(CheckpointError, match="No such file or directory; give a safetensors file"):
        load_weights(other, tmp_path / "yours.safetensors")


def change_spec(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_json(folder, lambda content: change(content["spec"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: spec["outputs"][0].update(width=16),
            r"shape \[1, 8, 8\]; its spec says \[1, 8, 16\]",
        ),
        (lambda spec: spec["inputs"].pop(), "does not take what its spec declares"),
        (
            lambda spec: spec["inputs"][1].update(classes=["a", "b", "c", "d"]),
            "does not take what its spec declares: index out of range",
        ),
        (
            lambda spec: spec.update(outputs=[{"name": "features", "kind": "vector", "size": 8}]),
            r"shape \[1, 8, 8\]; its spec says \[8\]",
        ),
        (
            lambda spec: spec["outputs"].append({"name": "mask", "kind": "tensor", "shape": [3]}),
            r"shape \[1, 8, 8\]; its spec says \[1, 8, 8\] and \[3\]",
        ),
    ],
    ids=["size", "input", "classes", "kind", "outputs"],
)
def test_a_spec_that_the_generator_does_not_keep_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_spec(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_the_generator_is_called_as_its_stage_says(folder: Path) -> None:
    def swap(spec: dict[str, Any]) -> None:
        spec["inputs"].reverse()
        takes = ["z", "class_label"]
        spec["stages"] = [{"network": "generator", "takes": takes, "gives": ["image"]}]

    change_spec(folder, swap)
    assert load_checkpoint(folder)[0].spec.pipeline[0].takes == ("z", "class_label")


def test_the_digest_follows_content_and_not_form(folder: Path, tmp_path: Path) -> None:
    digest = checkpoint_digest(folder)
    copied = shutil.copytree(folder, tmp_path / "copied")
    change_json(copied, lambda content: None)  # writes it without indentation
    assert checkpoint_digest(copied) == digest
    change_json(copied, lambda content: content.update(name="other"))
    assert checkpoint_digest(copied) != digest
    change_weights(folder, lambda tensors: tensors["last.bias"].add_(1))
    assert checkpoint_digest(folder) != digest
    assert len(digest) == 64


def test_read_checkpoint_does_not_open_the_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    assert read_checkpoint(folder).name == "tiny"


def test_a_spec_with_w_is_taken_at_its_word_until_it_is_exported(folder: Path) -> None:
    stages = stages_of_stylegan([0.0] * 8)

    def change(content: dict[str, Any]) -> None:
        content["spec"]["inputs"] += [w(2, 8), psi()]
        content["spec"]["stages"] = stages

    change_json(folder, change)
    checkpoint, _ = load_checkpoint(folder)
    assert checkpoint.spec.networks == ("mapping", "synthesis")
