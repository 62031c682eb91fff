"""Lists of integers as people write them: ``0-63,100``."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latentry.clients.samples import MAX_SAMPLES
from latentry.contract.errors import BadRequest
from latentry.contract.seeds import check_seed

_ITEM = re.compile(r"\s*(?P<first>[0-9]{1,20})\s*(-\s*(?P<last>[0-9]{1,20})\s*)?", re.ASCII)


def parse_seeds(text: str, *, called: str = "seeds") -> NDArray[np.int64]:
    """Return the seeds in ``text``, int64 [N]: integers and ranges with both ends, ``1,2,5-7``.

    What is refused names ``text`` as it is ``called``.

    Raises:
        BadRequest: It is something else, a range runs backwards, or an end is no seed.
    """
    return _parse(called, text, check_seed)


def parse_classes(text: str, *, called: str = "class_label") -> NDArray[np.int64]:
    """Return the class labels in ``text``, int64 [N]: integers and ranges, ``0-9`` or ``7``.

    What is refused names ``text`` as it is ``called``.

    Raises:
        BadRequest: It is something else, or a range runs backwards.
    """
    return _parse(called, text, _check_int64)


def _parse(called: str, text: str, check: Callable[[int], int]) -> NDArray[np.int64]:
    ranges = [_range(called, item, check) for item in text.split(",")]
    count = sum(last - first + 1 for first, last in ranges)
    if count > MAX_SAMPLES:
        raise BadRequest(f"{called} {text} names {count} numbers; one call takes {MAX_SAMPLES}")
    return np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in ranges])


def _range(called: str, item: str, check: Callable[[int], int]) -> tuple[int, int]:
    match = _ITEM.fullmatch(item)
    if not match:
        raise BadRequest(f"{called} holds {item!r}; give integers and ranges, such as 0-63,100")
    first = check(int(match["first"]))
    last = first if match["last"] is None else check(int(match["last"]))
    if last < first:
        raise BadRequest(f"{called} holds {item.strip()}, which runs backwards; {last}-{first}?")
    return first, last


def _check_int64(value: int) -> int:
    if value >= 2**63 - 1:
        raise BadRequest(f"class {value} is no class of any model")
    return value
