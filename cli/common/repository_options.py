"""Options and output that the commands of a repository share."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

DEFAULT_REPOSITORY = Path("model_repository")

Repository = Annotated[Path, typer.Option(help="The model repository.")]


def print_json(value: object, *, one_line: bool = False) -> None:
    """Print ``value`` as JSON, coloured on a terminal."""
    # All in ASCII: a terminal obeys none of what names and texts may hold.
    text = json.dumps(value)
    Console(soft_wrap=True).print_json(text, indent=None if one_line else 2, ensure_ascii=True)
