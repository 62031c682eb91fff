import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from specs import classes, image, make_spec, z

from latentry.contract.errors import BadRequest
from latentry.training import runs
from latentry.training.checkpoint import load_checkpoint
from latentry.training.metrics import METRICS
from latentry.training.recipe import Recipe, find_recipe
from latentry.training.runs import continue_run, finish_run, open_run, spec_from_recipe


@pytest.fixture(autouse=True)
def _quick_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "digits", lambda _images, _labels: {"label_agreement": 0.1})


def test_a_run_ends_in_pictures_and_a_checkpoint_that_says_where_it_comes_from(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    trainer = open_run(tiny_recipe, tmp_path / "tiny")
    steps = []
    assert continue_run(trainer, tmp_path / "tiny", lambda: steps.append(trainer.step))
    assert steps == [1, 2, 3, 4, 5, 6]
    finish_run(trainer, tmp_path / "tiny")
    for name in ("samples.png", "losses.png", "checkpoint/samples.png"):
        assert (tmp_path / "tiny" / name).read_bytes().startswith(b"\x89PNG")
    checkpoint, generator = load_checkpoint(tmp_path / "tiny/checkpoint")
    assert checkpoint.name == "tiny"
    assert checkpoint.spec == make_spec([z(8), classes(*"0123456789")], [image(32, 32, 1)])
    assert checkpoint.provenance.recipe == tiny_recipe.model_dump(mode="json")
    assert checkpoint.provenance.metrics == {"label_agreement": 0.1}
    assert checkpoint.provenance.data[0].licence.startswith("CC BY 4.0")
    assert checkpoint.provenance.tools["torch"] == torch.__version__
    assert (checkpoint.provenance.steps, checkpoint.provenance.seed) == (6, 0)
    expected = trainer.finished_generator().state_dict()
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_ctrl_c_finishes_the_step_and_the_run_goes_on_bit_equal(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    trainer = open_run(tiny_recipe, tmp_path / "interrupted")

    def interrupt() -> None:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert not continue_run(trainer, tmp_path / "interrupted", interrupt)
    assert trainer.step == 2
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = open_run(tiny_recipe, tmp_path / "interrupted", resume=True)
    assert continue_run(resumed, tmp_path / "interrupted", lambda: None)
    whole = open_run(tiny_recipe, tmp_path / "whole")
    continue_run(whole, tmp_path / "whole", lambda: None)
    ours = load_file(tmp_path / "interrupted/state.safetensors")
    theirs = load_file(tmp_path / "whole/state.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_is_killed_loses_no_more_than_since_it_was_last_saved(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_SAVE_EVERY_STEPS", 2)
    trainer = open_run(tiny_recipe, tmp_path)

    def die() -> None:
        if trainer.step == 3:
            raise SystemExit

    with pytest.raises(SystemExit):
        continue_run(trainer, tmp_path, die)
    assert open_run(tiny_recipe, tmp_path, resume=True).step == 2


def test_a_run_of_no_steps_is_saved(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe.model_copy(update={"steps": 0})
    assert continue_run(open_run(recipe, tmp_path), tmp_path, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_data_without_classes_make_a_generator_that_asks_for_none(tmp_path: Path) -> None:
    recipe = find_recipe("textures")
    config = recipe.generator.config | {"z_dim": 8, "width": 4}
    tiny = recipe.model_copy(
        update={
            "steps": 1,
            "batch_size": 4,
            "generator": recipe.generator.model_copy(update={"config": config}),
            "discriminator": recipe.discriminator.model_copy(update={"width": 4}),
        }
    )
    trainer = open_run(tiny, tmp_path)
    assert continue_run(trainer, tmp_path, lambda: None)
    assert [item.name for item in spec_from_recipe(tiny, trainer).inputs] == ["z"]


def test_a_second_ctrl_c_stops_at_once(tiny_recipe: Recipe, tmp_path: Path) -> None:
    trainer = open_run(tiny_recipe, tmp_path)

    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        continue_run(trainer, tmp_path, interrupt_twice)


def test_a_run_works_outside_the_main_thread(tiny_recipe: Recipe, tmp_path: Path) -> None:
    trainer = open_run(tiny_recipe, tmp_path)
    thread = threading.Thread(target=continue_run, args=(trainer, tmp_path, lambda: None))
    thread.start()
    thread.join()
    assert trainer.step == 6


def test_a_run_is_not_started_over_by_accident(tiny_recipe: Recipe, tmp_path: Path) -> None:
    continue_run(open_run(tiny_recipe, tmp_path), tmp_path, lambda: None)
    with pytest.raises(BadRequest, match="already holds a run; go on with it with --resume"):
        open_run(tiny_recipe, tmp_path)


def test_there_must_be_something_to_resume(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no run to resume; start it without --resume"):
        open_run(tiny_recipe, tmp_path, resume=True)
