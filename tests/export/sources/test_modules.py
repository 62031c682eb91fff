import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sample_generators import Exported
from torch import nn

from latentry.contract.errors import BadRequest, CheckpointError, ExportRefused, NotFound
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.truncate import TruncateStage
from latentry.export.sources.modules import check_stages, module_from_target

SOURCE = """
from torch import nn

SIZE = 3

def build():
    return nn.Sequential(nn.Linear(SIZE, 2), nn.Dropout())

def build_name():
    return "generator"

def build_with(size):
    return nn.Linear(size, 2)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a user's package in it; what is imported from it is forgotten."""
    (tmp_path / "my_generators").mkdir()
    (tmp_path / "my_generators" / "tiny.py").write_text(SOURCE)
    (tmp_path / "my_generators" / "wanting.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_generators"]:
        del sys.modules[name]


@pytest.fixture
def weights(project: Path) -> Path:
    path = project / "weights.safetensors"
    save_file({"0.weight": torch.full((2, 3), 0.5), "0.bias": torch.ones(2)}, path)
    return path


def test_a_module_comes_from_the_current_folder_with_its_weights(weights: Path) -> None:
    module = module_from_target("my_generators.tiny:build", weights)
    assert isinstance(module, nn.Sequential)
    assert not module.training
    assert module.get_parameter("0.weight").tolist() == [[0.5] * 3] * 2


def test_the_current_folder_comes_once_on_the_path(project: Path, weights: Path) -> None:
    module_from_target("my_generators.tiny:build", weights)
    module_from_target("my_generators.tiny:build", weights)
    assert sys.path.count(str(project)) == 1
    assert sys.path[0] == str(project)


def test_weights_that_do_not_fit_are_refused(project: Path, weights: Path) -> None:
    save_file({"0.weight": torch.zeros(2, 4), "0.bias": torch.ones(2)}, weights)
    with pytest.raises(CheckpointError, match=r"0\.weight: found float32 \[2, 4\], expected"):
        module_from_target("my_generators.tiny:build", weights)


@pytest.mark.parametrize("target", ["", "my_generators.tiny", "my_generators/tiny.py:f", "a:b:c"])
def test_another_spelling_is_refused(target: str, weights: Path) -> None:
    with pytest.raises(BadRequest, match=r"names no function; write it as my_package\.my_module"):
        module_from_target(target, weights)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            "my_generator.tiny:build",
            NotFound,
            r"no Python module 'my_generator' in .* or among the inst",
        ),
        ("my_generators.tin:build", NotFound, r"no Python module 'my_generators\.tin' in "),
        (
            "my_generators.wanting:build",
            NotFound,
            r"was found, but it imports 'no_such_depend",
        ),
        ("my_generators.tiny:bild", NotFound, r"tiny\.py\) has no 'bild'; .* build, build_name"),
        ("my_generators.tiny:SIZE", BadRequest, r"tiny:SIZE is a int; name a function$"),
        ("my_generators.tiny:build_name", BadRequest, r"returned a str; it must return the gener"),
    ],
)
def test_what_was_found_is_told(
    weights: Path, target: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        module_from_target(target, weights)


def test_a_generator_of_stages_needs_all_its_networks(mapped: Exported) -> None:
    module = nn.Module()
    module.mapping = nn.Linear(2, 2)
    message = (
        r"networks mapping, synthesis, but Module has no synthesis \(its submodules: mapping\); "
        "give it submodules or methods of these names, or correct the stages"
    )
    with pytest.raises(ExportRefused, match=message):
        check_stages(module, mapped.spec)


def test_a_generator_without_stages_needs_no_submodules(plain: Exported) -> None:
    check_stages(nn.Module(), plain.spec)


def test_a_truncation_towards_nothing_is_refused(mapped: Exported) -> None:
    stages = [
        stage.model_copy(update={"w_avg": None}) if isinstance(stage, TruncateStage) else stage
        for stage in mapped.spec.stages
    ]
    spec = GeneratorSpec(
        inputs=mapped.spec.inputs, outputs=mapped.spec.outputs, stages=tuple(stages)
    )
    with pytest.raises(ExportRefused, match="the stage truncate has no w_avg"):
        check_stages(mapped.module, spec)
