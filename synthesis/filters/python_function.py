"""The filter ``python``: a function of the user's."""

import inspect
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.importing import TARGET, function_from_target, told
from latentry.synthesis.filters.judging import Candidates, Filter, JudgeOptions

_MOST_REASON = 1000


class PythonOptions(JudgeOptions):
    """Ask a function of yours, ``package.module:function``.

    It is called as ``function(images, seeds, inputs)`` with uint8 [N, H, W, C], int64 [N] and a
    dictionary of [N], or [N, size] of vectors, and returns N entries: None, or a text that says
    why the sample is rejected.
    The verdict on an image must depend on nothing else, or shards are no longer reproducible.
    """

    kind: Literal["python"]
    function: str
    _folder: Path = PrivateAttr(Path())

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not TARGET.fullmatch(value):
            raise ValueError(f'holds "{value}"; give "package.module:function"')
        return value

    @model_validator(mode="after")
    def _keep_folder(self, info: ValidationInfo) -> Self:
        self._folder = Path((info.context or {}).get("folder", ""))
        return self

    def load(self) -> Filter:
        """Return the filter."""
        return _Python(self.function, _imported(self.function, self._folder))

    def files(self) -> list[Path]:
        """Return the files on which the verdict depends."""
        return [Path(inspect.getsourcefile(_imported(self.function, self._folder)) or "")]


class _Python:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function

    def judge(self, candidates: Candidates) -> list[str | None]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is the command's own
                answer = list(
                    self._function(candidates.images, candidates.seeds, dict(candidates.inputs))
                )
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise BadRequest(f"filter {self._name} failed: {told(error)}") from error
        must = "it returns one for each image, None or the reason as a text"
        if len(answer) != len(candidates.seeds):
            raise BadRequest(
                f"filter {self._name} answered {len(answer)} items for "
                f"{len(candidates.seeds)} images; {must}"
            )
        for item in answer:
            if item is not None and not isinstance(item, str):
                raise BadRequest(f"filter {self._name} answered a {type(item).__name__}; {must}")
        return [None if item is None else _as_reason(item) for item in answer]


def _imported(target: str, folder: Path) -> Callable[..., Any]:
    """Return the function ``target``, looked for in ``folder``, that of the job's file, first."""
    try:
        function = function_from_target(target, folder)
    except LatentryError as error:
        raise type(error)(f"filter {target}: {error}") from error
    if not inspect.isfunction(function):  # it has no file that could be hashed
        raise BadRequest(f"filter {target} is no Python function")
    return function


def _as_reason(text: str) -> str:
    """Return a reason as a record takes it: not too long, and in UTF-8."""
    return text[:_MOST_REASON].encode(errors="replace").decode()
