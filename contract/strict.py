"""What every model of a file shares: frozen, no unknown key; and its errors as one line."""

import re
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from latentry.contract.errors import listed

_MOST_FINDINGS, _MOST_TEXT = 10, 2000
# A default that depends on what is wrong is no finding of its own.
_NO_DEFAULT = "default_factory_not_called"


class Strict(BaseModel):
    """Data that is checked when it is made and never changes; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def finding_text(item: ErrorDetails) -> str:
    """Return one of pydantic's findings as ``where: what``."""
    where = ".".join(str(part) for part in item["loc"]) or "top level"
    if item["type"] == "extra_forbidden":
        return f"{where}: there is no such key"
    if item["type"] == "union_tag_invalid":
        tags = ", ".join(re.findall(r"'([^']*)'", item["ctx"]["expected_tags"]))
        key = item["ctx"]["discriminator"].strip("'")
        return f"{where}: {key} {item['ctx']['tag']!r} is unknown; use one of {tags}"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"


def explain(error: ValidationError, finding: Callable[[ErrorDetails], str] = finding_text) -> str:
    """Return pydantic's findings as one line for people, as many of them as anybody reads.

    Args:
        error: What pydantic raised.
        finding: Says one of them.
    """
    items = [item for item in error.errors(include_url=False) if item["type"] != _NO_DEFAULT]
    findings = listed(map(finding, items), "; ", most=_MOST_FINDINGS)
    return " ".join(findings[:_MOST_TEXT].split())
