"""What several rooms ask of the operating system."""

import ctypes
import ipaddress
import signal
from collections.abc import Callable
from datetime import UTC, datetime

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def time_now() -> str:
    """Return the time, UTC, to the second, as ISO 8601: ``2026-11-30T08:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_loopback(host: str) -> bool:
    """Whether ``host``, without port and brackets, is this machine by its spelling.

    Nothing is looked up.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def dying_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a child process calls to get signal ``number`` when its parent dies (Linux).

    Fit for ``subprocess``'s ``preexec_fn``: the library is loaded before the fork. Linux means the
    thread that forked: when that ends, the signal comes, too.
    """
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:  # pragma: no cover - between fork and exec no data is written
        libc.prctl(_PR_SET_PDEATHSIG, number)

    return die_with_parent
