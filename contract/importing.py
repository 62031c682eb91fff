"""Code of others: functions named ``package.module:function``, and where packages are found."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from latentry.contract.errors import BadRequest, NotFound, listed

SEARCH_PATH = "LATENTRY_SEARCH_PATH"
"""Names, in the environment, the places where the server's own process finds its packages."""

TARGET = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<name>\w+)")


def function_from_target(target: str, folder: Path) -> Callable[..., Any]:
    """Return what ``target`` names, looked for in ``folder`` first; its module runs.

    The folder stays on ``sys.path``, because the module may import more of it later.

    Args:
        target: ``package.module:function``.
        folder: Where a person keeps the module: the current folder, or that of a job's file.

    Raises:
        BadRequest: ``target`` has another form, its module fails, or it cannot be called.
        NotFound: There is no such module or function, or the module imports what there is not.
    """
    match = TARGET.fullmatch(target)
    if match is None:
        raise BadRequest(f"{target!r} names no function; write it as my_package.my_module:build")
    module = _import_module(match["module"], folder)
    function = getattr(module, match["name"], None)
    if function is None:
        there = [name for name, value in vars(module).items() if callable(value)]
        file = getattr(module, "__file__", None)
        raise NotFound(
            f"{match['module']}{f' ({file})' if file else ''} has no {match['name']!r}; "
            f"what can be called there: {listed(there) or 'nothing'}"
        )
    if not callable(function):
        raise BadRequest(f"{target} is a {type(function).__name__}; name a function")
    return function  # type: ignore[no-any-return]  # callable() does not narrow an Any


def _import_module(name: str, folder: Path) -> ModuleType:
    place = str(folder)
    if place not in sys.path:
        sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there but imports something missing is another matter.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise NotFound(
                f"{name} was found, but it imports {error.name!r}, which is not installed here"
            ) from error
        raise NotFound(
            f"there is no Python module {error.name!r} in {place} or among the installed packages; "
            "put it there or install it"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise BadRequest(f"importing {name} failed: {told(error)}") from error


def told(error: BaseException) -> str:
    """Return what code of the user's raised, and where, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"


def follow_search_path() -> None:
    """Find packages where ``latentry serve`` does: Triton's stubs ignore ``PYTHONPATH``.

    So that kinds and operations of others, which come as packages, are there, too.
    """
    for place in os.environ.get(SEARCH_PATH, "").split(os.pathsep):
        if place and place not in sys.path:
            sys.path.append(place)
