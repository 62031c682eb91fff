"""``latentry train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from latentry.training.checkpoint import Checkpoint
    from latentry.training.gan import Trainer
    from latentry.training.recipe import Recipe

_RecipeArgument = Annotated[
    str,
    typer.Argument(help="A TOML file, or a recipe that comes with latentry: digits, textures."),
]
_OutOption = Annotated[Path, typer.Option(help="Where run folders go; this one is OUT/<name>.")]
_StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Train this many steps instead of the recipe's.")
]
_ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
_ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default what PyTorch chooses.")
]


def train(
    recipe: _RecipeArgument,
    out: _OutOption = Path("runs"),
    steps: _StepsOption = None,
    resume: _ResumeOption = False,
    threads: _ThreadsOption = None,
) -> None:
    """Train a generator by a recipe; ends in a checkpoint folder.

    Ctrl-C saves the run; the same command with --resume goes on with it as if nothing happened.

    For example:

        latentry train digits

        latentry train my_recipe.toml --out runs --steps 5000 --threads 2
    """
    from rich.console import Console

    from latentry.training.recipe import find_recipe
    from latentry.training.runs import CHECKPOINT_FOLDER, finish_run, open_run, set_threads

    if threads is not None:
        set_threads(threads)
    console = Console(soft_wrap=True, highlight=False)
    chosen = find_recipe(recipe)
    if steps is not None:
        chosen = chosen.model_copy(update={"steps": steps})
    folder = out / chosen.name
    trainer = open_run(chosen, folder, resume=resume)
    if not _train_with_progress(trainer, folder, console):
        console.print(f"Stopped at step {trainer.step}; everything is saved in {folder}.")
        console.print("To go on, give the same command with --resume.")
        raise typer.Exit(130)
    with console.status("Measuring the samples"):
        checkpoint = finish_run(trainer, folder)
    _print_metrics(console, chosen, checkpoint)
    console.print(f"Checkpoint: {folder / CHECKPOINT_FOLDER}")
    console.print(
        f"Next: latentry export {folder / CHECKPOINT_FOLDER} --repository model_repository"
    )


def _train_with_progress(trainer: "Trainer", folder: Path, console: "Console") -> bool:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from latentry.training.runs import continue_run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(
            f"Training {trainer.recipe.name}", total=trainer.recipe.steps, completed=trainer.step
        )
        return continue_run(trainer, folder, lambda: progress.advance(task))


def _print_metrics(console: "Console", recipe: "Recipe", checkpoint: "Checkpoint") -> None:
    metrics = checkpoint.provenance.metrics
    for name, value in metrics.items():
        console.print(f"  {name:<26} {value:.4f}")
    for shortfall in recipe.find_shortfalls(metrics):
        console.print(f"Below the recipe's aim: {shortfall}.", style="yellow")
