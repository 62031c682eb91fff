"""What commands show: JSON for scripts, progress for people."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from latentry.contract.files import printable

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def echo(text: str, *, err: bool = False) -> None:
    """Print a text that may come out of anybody's file."""
    typer.echo(printable(text), err=err)


def echo_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line, all in ASCII: a terminal obeys none of it."""
    typer.echo(json.dumps(value))


class _Rate(ProgressColumn):
    """Images a second: of late, and in the end of all the time that it took."""

    def render(self, task: Task) -> Text:
        # rich's own figure leaves out what came first, which is all there is of a short task.
        elapsed = task.finished_time or task.elapsed
        mean = task.completed / elapsed if elapsed else 0.0
        return Text(f"{mean if task.finished else task.speed or mean:.0f} images/s")


class Advance:
    """Counts images of a progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, count: int) -> None:
        """Count ``count`` more."""
        self._progress.advance(self._task, count)

    def start(self, total: int) -> None:
        """Begin anew, with ``total`` images."""
        self._progress.reset(self._task, total=total)

    def expect(self, count: int) -> None:
        """Expect ``count`` images more than before."""
        (task,) = (task for task in self._progress.tasks if task.id == self._task)
        self._progress.update(self._task, total=(task.total or 0) + count)


@contextmanager
def progress_bar(title: str, total: int | None, *, quiet: bool) -> Iterator[Advance]:
    """Show a progress bar on standard error; give what counts images, None as long as unknown."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        yield Advance(progress, progress.add_task(title, total=total))


@contextmanager
def waiting(title: str, *, quiet: bool) -> Iterator[None]:
    """Show on a terminal, on standard error, that the block is at work and for how long."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(title), TimeElapsedColumn())
    silent = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as progress:
        progress.add_task(title, total=None)
        yield
