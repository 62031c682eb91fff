import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentry.contract.errors import BadRequest, CheckpointError
from latentry.training.gan import Trainer, recompute_batch_norm, update_average
from latentry.training.recipe import Recipe


def train(trainer: Trainer, steps: int) -> Trainer:
    for _ in range(steps):
        trainer.train_step()
    return trainer


def all_tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, module in trainer._modules().items()
        for key, value in module.state_dict().items()
    }


def test_a_resumed_training_is_bit_equal_to_an_uninterrupted_one(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    whole = train(Trainer(tiny_recipe), 6)
    first = train(Trainer(tiny_recipe), 2)
    first.save_state(tmp_path / "state.safetensors")
    second = Trainer(tiny_recipe)
    second.load_state(tmp_path / "state.safetensors")
    assert second.step == 2
    train(second, 4)
    assert second.losses == whole.losses
    resumed = all_tensors(second)
    for name, tensor in all_tensors(whole).items():
        assert torch.equal(tensor, resumed[name]), name
    finished, expected = second.finished_generator(), whole.finished_generator()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, finished.state_dict()[name]), name


def test_the_seed_decides_the_training_and_the_global_generator_is_left_alone(
    tiny_recipe: Recipe,
) -> None:
    before = torch.random.get_rng_state()
    same = [train(Trainer(tiny_recipe), 2).losses for _ in range(2)]
    torch.manual_seed(123)
    same.append(train(Trainer(tiny_recipe), 2).losses)
    other = train(Trainer(tiny_recipe.model_copy(update={"seed": 1})), 2).losses
    torch.random.set_rng_state(before)
    assert same[0] == same[1] == same[2] != other


def test_a_finished_generator_is_no_part_of_the_training(tiny_recipe: Recipe) -> None:
    looked_at = train(Trainer(tiny_recipe), 2)
    looked_at.finished_generator()
    undisturbed = train(Trainer(tiny_recipe), 2)
    assert train(looked_at, 1).losses == train(undisturbed, 1).losses


def test_more_steps_may_follow_but_no_other_change(tiny_recipe: Recipe, tmp_path: Path) -> None:
    train(Trainer(tiny_recipe), 1).save_state(tmp_path / "state.safetensors")
    Trainer(tiny_recipe.model_copy(update={"steps": 9})).load_state(tmp_path / "state.safetensors")
    changed = Trainer(tiny_recipe.model_copy(update={"batch_size": 16, "seed": 5}))
    with pytest.raises(BadRequest, match="another recipe: batch_size, seed differ; resume with"):
        changed.load_state(tmp_path / "state.safetensors")


def test_a_damaged_state_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    trainer = train(Trainer(tiny_recipe), 1)
    trainer.save_state(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        trainer.load_state(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is no training state of format 1"):
        trainer.load_state(path)
    metadata = {"state_format": "1", "recipe": tiny_recipe.model_dump_json()}
    save_file({"weight": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match="does not fit this version of the training"):
        trainer.load_state(path)
    for recipe in ("[" * 100_000, "7", "{"):
        save_file({"weight": torch.zeros(1)}, path, {"state_format": "1", "recipe": recipe})
        with pytest.raises(CheckpointError, match="names no recipe"):
            trainer.load_state(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        trainer.load_state(path)


def test_a_training_that_diverges_stops_and_says_so(tiny_recipe: Recipe) -> None:
    trainer = Trainer(tiny_recipe)
    nn.init.constant_(trainer.generator.get_parameter("last.weight"), float("nan"))
    with pytest.raises(BadRequest, match="diverged at step 1: .*lower the learning rates"):
        trainer.train_step()


def test_the_average_moves_by_its_decay_and_leaves_buffers_alone() -> None:
    average, module = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    nn.init.constant_(average.weight, 1.0)
    nn.init.constant_(module.weight, 2.0)
    module.get_buffer("running_mean").fill_(7.0)
    update_average(average, module, 0.75)
    assert average.weight.item() == 1.25
    assert average.get_buffer("running_mean").item() == 0.0


def test_the_average_forgets_the_first_weights_soon(tiny_recipe: Recipe) -> None:
    trainer = Trainer(tiny_recipe)
    assert trainer._average_decay() == 0.1
    trainer.losses = [(0.0, 0.0)] * 10_000
    assert trainer._average_decay() == tiny_recipe.optimizer.ema_decay


def test_batch_norm_is_recomputed_as_the_plain_mean_of_the_batches() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(2)
    norm.get_buffer("running_mean").fill_(99.0)
    batches = [torch.randn(50, 2, 4, 4) * 3 + 5 for _ in range(4)]
    recompute_batch_norm(nn.Sequential(norm), [(batch,) for batch in batches])
    every = torch.cat(batches)
    torch.testing.assert_close(norm.running_mean, every.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, every.var(dim=(0, 2, 3)), rtol=0.02, atol=0)
    assert norm.momentum == 0.1
