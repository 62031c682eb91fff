"""Lists of integers as people write them: ``0-63,100``."""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import check_seed

MAX_SAMPLES = 2**24
"""Most samples of one call."""

_ITEM = re.compile(r"\s*(?P<first>-?[0-9]{1,20})\s*(-\s*(?P<last>-?[0-9]{1,20})\s*)?", re.ASCII)
_INT64 = np.iinfo(np.int64)


def seeds_from_text(name: str, text: str) -> NDArray[np.int64]:
    """Return the seeds in ``text``, int64 [N]: integers and ranges with both ends, ``1,2,5-7``.

    Args:
        name: What messages call it.
        text: What was written.

    Raises:
        BadRequest: It is something else, a range runs backwards, or an end is no seed.
    """
    return _parse(name, text, lambda _, value: check_seed(value))


def integers_from_text(name: str, text: str) -> NDArray[np.int64]:
    """Return the integers in ``text``, int64 [N]: integers and ranges, ``0-9`` or ``-7``.

    Raises:
        BadRequest: It is something else, a range runs backwards, or an end takes more than 64 bits.
    """
    return _parse(name, text, _check_int64)


def _parse(name: str, text: str, check: Callable[[str, int], int]) -> NDArray[np.int64]:
    ranges = [_range(name, item, check) for item in text.split(",")]
    count = sum(last - first + 1 for first, last in ranges)
    if count > MAX_SAMPLES:
        raise BadRequest(f"{name} {text} names {count} numbers; one call takes {MAX_SAMPLES}")
    # Counted from 0, as the end of a range may be the last that there is.
    return np.concatenate([np.arange(last - first + 1) + first for first, last in ranges])


def _range(name: str, item: str, check: Callable[[str, int], int]) -> tuple[int, int]:
    match = _ITEM.fullmatch(item)
    if not match:
        raise BadRequest(f"{name} holds {item!r}; give integers and ranges, such as 0-63,100")
    first = check(name, int(match["first"]))
    last = first if match["last"] is None else check(name, int(match["last"]))
    if last < first:
        raise BadRequest(f"{name} holds {item.strip()}, which runs backwards; {last}-{first}?")
    return first, last


def _check_int64(name: str, value: int) -> int:
    if not _INT64.min <= value <= _INT64.max:
        raise BadRequest(f"{name} holds {value}, which does not fit in 64 bits")
    return value
