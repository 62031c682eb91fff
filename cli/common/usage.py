"""Wrong usage: what the options alone say, before a server or a model is asked; exit code 2."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentry.cli.common.exit_codes import EXIT_USAGE
from latentry.contract.errors import BadRequest

# Arguments of the clients as the commands spell them.
_OPTIONS = {"class_label": "--class", "truncation_psi": "--psi"}
_ARGUMENT = re.compile(rf"({'|'.join(_OPTIONS)})\b")


class WrongUsage(BadRequest):
    """An option's value, or a combination of options, means nothing."""

    exit_code = EXIT_USAGE


@contextmanager
def reading_options() -> Iterator[None]:
    """Turn what is refused in the block, which reads options, into wrong usage."""
    try:
        yield
    except BadRequest as error:
        raise WrongUsage(str(error)) from error


@contextmanager
def naming_options() -> Iterator[None]:
    """Put the option that was typed before what is refused about an argument of the client."""
    try:
        yield
    except BadRequest as error:
        if found := _ARGUMENT.match(str(error)):
            raise BadRequest(f"{_OPTIONS[found[1]]}: {error}") from error
        raise


def check_folder(option: str, folder: Path | None) -> None:
    """Check that files can go into ``folder``, which may have to be made.

    Raises:
        WrongUsage: It, or something above it, is there and is no folder.
    """
    there = next((p for p in (folder, *folder.parents) if p.exists()), None) if folder else None
    if there is not None and not there.is_dir():
        raise WrongUsage(f"{option} {folder}: {there} is there and is no folder")
