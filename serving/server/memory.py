"""How much memory a server takes, and how much it may.

Triton 2.51 gives nothing back: neither the memory of large requests, nor that of answers which
nobody read, whatever is set. So above a limit it is drained and started again.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import psutil

from latentry.contract.errors import BadRequest, ServeError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(
    r"(?P<number>[0-9]{1,12}(\.[0-9]{1,6})?)\s*(?P<unit>[KMGT]?)(iB|B)?", re.IGNORECASE | re.ASCII
)
_GROWTH_BYTES = 2 * 2**30
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def parse_size(text: str) -> int:
    """Return the bytes in a text such as ``800MiB`` or ``4G``; units are powers of 1,024.

    Raises:
        BadRequest: It is something else.
    """
    match = _SIZE.fullmatch(text.strip())
    size = round(float(match["number"]) * _UNITS[match["unit"].upper()]) if match else 0
    if not size:
        raise BadRequest(f"{text!r} is no size; give a number and a unit, such as 800MiB or 4GiB")
    return size


def used_bytes(processes: Sequence[psutil.Process], at_least: int = 0) -> int:
    """Return the memory of ``processes``, shared pages counted once (PSS); those gone count 0.

    Where they cannot take ``at_least`` bytes, that is found out at a hundredth of the cost, and 0
    returned: the kernel walks through every page to say what is shared.
    """
    if _resident_bytes(processes) < at_least:
        return 0
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def _resident_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the memory of ``processes``, shared pages counted in each: never less than PSS."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


class MemoryLimit:
    """The memory above which a server is started again; the same for all its lives.

    Attributes:
        most: Bytes; 0 until it is settled.
    """

    def __init__(self, most: int | None) -> None:
        """Take ``most`` bytes, or None for :func:`default_limit` of the first life."""
        self._given = most
        self.most = 0

    def settle(self, ready_bytes: int) -> None:
        """Settle the limit by what a life takes when it is ready.

        Only what the first one takes counts: later ones may be flooded before they are ready.

        Raises:
            ServeError: The first one takes more than was allowed.
        """
        if self.most:
            return
        self.most = self._given or default_limit(ready_bytes)
        if ready_bytes > self.most:
            raise ServeError(
                f"the server takes {mib(ready_bytes)} when it is ready, more than "
                f"--most-memory allows ({mib(self.most)}); allow more, or serve fewer models "
                "or instances"
            )


def mib(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 2**20:.0f} MiB"


def default_limit(ready_bytes: int) -> int:
    """Return the limit for a server that took ``ready_bytes`` when it became ready.

    2 GiB, or as much again where that is more; but no more than nine tenths of the machine (or of
    the container), unless it needs that from the start.
    """
    machine = psutil.virtual_memory().total
    if _CONTAINER.exists() and (text := _CONTAINER.read_text().strip()).isdecimal():
        machine = min(machine, int(text))
    wanted = ready_bytes + max(_GROWTH_BYTES, ready_bytes)
    return max(min(wanted, machine * 9 // 10), ready_bytes * 21 // 20)
