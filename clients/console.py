"""What commands show: JSON for scripts, progress for people."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def echo_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} images/s")


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


@contextmanager
def progress_bar(title: str, total: int, *, quiet: bool) -> Iterator[Advance]:
    """Show a progress bar on standard error; give what counts images."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        yield Advance(progress, progress.add_task(title, total=total))
