"""Which operations there are: ours, and those of installed packages (``latentry.operations``)."""

import json
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from latentry.contract.stages.stage import NetworkStage, OperationStage, Stage
from latentry.contract.stages.truncate import TruncateStage
from latentry.contract.strict import explain

GROUP = "latentry.operations"
_OPERATIONS: dict[str, type[OperationStage]] = {"truncate": TruncateStage}


def stage_from_any(value: Any) -> Stage:
    """Return the stage that a spec declares; raises ValueError, as pydantic's validators do."""
    if isinstance(value, NetworkStage | OperationStage):
        return value
    if not isinstance(value, dict) or ("network" in value) == ("operation" in value):
        raise ValueError("a stage is an object with either network or operation")
    try:
        kind = NetworkStage if "network" in value else _operation(value["operation"])
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def _operation(word: object) -> type[OperationStage]:
    # Others are looked for only where a word is unknown: it reads a file of every package.
    found = _OPERATIONS.get(word) if isinstance(word, str) else None
    found = found or (_operations_of_others().get(word) if isinstance(word, str) else None)
    if found is None:
        known = ", ".join([*_OPERATIONS, *_operations_of_others()])
        raise ValueError(f"operation {word!r} is unknown; use one of {known}")
    return found


@cache
def _operations_of_others() -> dict[str, type[Any]]:
    return {entry.name: entry.load() for entry in entry_points(group=GROUP)}
