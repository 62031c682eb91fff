"""A run: a folder in which a training goes on, stops, is resumed, and ends in a checkpoint.

::

    runs/digits/
    ├── state.safetensors   everything that the next step depends on
    ├── samples.png         samples of the first seeds, newest
    ├── losses.png
    └── checkpoint/         when it is done
"""

import importlib.metadata
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from latentry.contract.errors import BadRequest
from latentry.contract.files import sweep_temporary, write_atomic
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.spec import GeneratorSpec
from latentry.training.checkpoint import Checkpoint, Provenance, save_checkpoint
from latentry.training.gan import Trainer
from latentry.training.metrics import measure_generator
from latentry.training.recipe import Recipe
from latentry.training.report import png_from_losses, png_from_samples

STATE_FILE = "state.safetensors"
CHECKPOINT_FOLDER = "checkpoint"

_SAVE_EVERY_STEPS = 250
_TOOLS = ("latentry", "torch", "numpy", "scikit-learn", "scikit-image", "safetensors")


def open_run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Trainer:
    """Return a trainer for a run folder, new or as far as an earlier call came.

    Raises:
        BadRequest: There is a run and ``resume`` is false, there is none and it is true, or the
            run was started with another recipe.
        CheckpointError: The run's state is damaged.
    """
    state = folder / STATE_FILE
    if state.exists() and not resume:
        raise BadRequest(
            f"{folder} already holds a run; go on with it with --resume, "
            "or choose another folder with --out"
        )
    if resume and not state.exists():
        raise BadRequest(f"{folder} holds no run to resume; start it without --resume")
    trainer = Trainer(recipe)
    if resume:
        trainer.load_state(state)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder)
    return trainer


def continue_run(trainer: Trainer, folder: Path, on_step: Callable[[], None]) -> bool:
    """Train until the recipe's last step or the first Ctrl-C, and save the state.

    The state is also saved every 250 steps. A second Ctrl-C stops at once.

    Args:
        trainer: Of :func:`open_run`.
        folder: The run's folder.
        on_step: Called after each step.

    Returns:
        Whether all steps are done.

    Raises:
        BadRequest: The training diverged.
    """
    with _interrupt_flag() as interrupted:
        while trainer.step < trainer.recipe.steps and not interrupted.is_set():
            trainer.train_step()
            on_step()
            if trainer.step % _SAVE_EVERY_STEPS == 0:
                _save_progress(trainer, folder)
    _save_progress(trainer, folder)
    return trainer.step >= trainer.recipe.steps


def finish_run(trainer: Trainer, folder: Path) -> Checkpoint:
    """Measure the averaged generator, write the checkpoint into the run's folder, return it."""
    recipe = trainer.recipe
    generator = trainer.finished_generator()
    checkpoint = Checkpoint(
        name=recipe.name,
        architecture=recipe.generator.architecture,
        config=recipe.generator.config,
        spec=spec_from_recipe(recipe, trainer),
        provenance=Provenance(
            recipe=recipe.model_dump(mode="json"),
            data=trainer.data.sources,
            metrics=measure_generator(recipe.data, generator, recipe.z_dim),
            tools=tool_versions(),
            seed=recipe.seed,
            steps=trainer.step,
        ),
    )
    samples = png_from_samples(generator, recipe.z_dim, len(trainer.data.classes))
    save_checkpoint(folder / CHECKPOINT_FOLDER, checkpoint, generator.state_dict(), samples)
    return checkpoint


def spec_from_recipe(recipe: Recipe, trainer: Trainer) -> GeneratorSpec:
    """Return what the generator of a recipe takes and gives, given the data it is trained on."""
    inputs: list[InputKind] = [LatentInput(name="z", shape=(recipe.z_dim,))]
    if trainer.data.classes:
        inputs.append(ClassInput(name="class_label", classes=trainer.data.classes))
    return GeneratorSpec(inputs=tuple(inputs), outputs=(trainer.data.image,))


def tool_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide how a training goes."""
    versions = {name: importlib.metadata.version(name) for name in _TOOLS}
    return {"python": platform.python_version(), **versions}


def _save_progress(trainer: Trainer, folder: Path) -> None:
    trainer.save_state(folder / STATE_FILE)
    if not trainer.losses:
        return
    generator = trainer.finished_generator()
    samples = png_from_samples(generator, trainer.recipe.z_dim, len(trainer.data.classes))
    write_atomic(folder / "samples.png", samples)
    write_atomic(folder / "losses.png", png_from_losses(trainer.losses))


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never left half done."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there signals can be set
        yield flag
        return

    def on_interrupt(_number: int, _frame: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


def set_threads(threads: int) -> None:
    """Have PyTorch use so many threads in this process."""
    torch.set_num_threads(threads)
