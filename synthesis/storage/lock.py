"""Who holds a job's lock: what a lock file says of its process, and whether that one lives."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from latentry.contract.files import parse_json

LOCK_FILE = "job.lock"
_MOST_HOST = 256
MOST_LOCK_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


def identity() -> dict[str, Any]:
    """Return what names this process, and nobody else, as long as it lives."""
    return {
        "host": platform.node(),
        "boot": _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "",
        "namespace": os.readlink(_NAMESPACE) if _NAMESPACE.exists() else "",
        "pid": os.getpid(),
        "started": started(os.getpid()),
    }


def lock_bytes() -> bytes:
    """Return a lock file of this process."""
    return json.dumps(identity(), sort_keys=True).encode()


def owner_name(owner: dict[str, Any]) -> str:
    """Return who holds a lock, for people."""
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def started(pid: int) -> str | None:
    """Return when the process was started, in ticks since boot; None where there is none."""
    if not _NAMESPACE.exists():
        return "unknown"  # no Linux: only the kernel's lock and --take-over decide
    try:
        # proc(5): what follows the name, which may hold anything, in brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def owner_of(descriptor: int) -> dict[str, Any] | None:
    """Return who holds the lock; None for nobody, which a crash while taking it leaves too."""
    return owner_in(os.pread(descriptor, MOST_LOCK_BYTES, 0))


def owner_in(data: bytes) -> dict[str, Any] | None:
    """Return who holds a lock with these bytes; None where they name nobody."""
    try:
        owner = parse_json(data)
    except ValueError:
        return None
    kinds = {key: type(value) for key, value in identity().items()}
    if not isinstance(owner, dict) or {key: type(owner[key]) for key in owner} != kinds:
        return None
    return owner if 0 < owner["pid"] < 2**31 and len(owner["host"]) < _MOST_HOST else None


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still is the open file; a lock's owner removes it when it is done."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), found)
