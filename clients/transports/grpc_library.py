"""gRPC itself, as this process can use it.

gRPC does not survive a fork: its threads are gone in the child, its locks may be held for ever, and
a call hangs there without keeping its deadline, or crashes, on a new channel as on an old one. So a
forked process loads a second copy of the library, which knows nothing of the first, and lets what
it has inherited lie: freeing it would call into the broken copy.
"""

import ctypes
import gc
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from typing import Any, Protocol
from weakref import WeakSet

from latentry.contract.errors import ServerFault

_EXTENSION = "grpc._cython.cygrpc"
_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"


class Inheritable(Protocol):
    """Holds objects of gRPC, and may be found in a forked process."""

    def let_go(self) -> None:
        """Begin anew, in a forked process, without the objects of its parent."""
        ...


_lock = threading.Lock()
_broken = False
_holders: "WeakSet[Inheritable]" = WeakSet()


def library() -> Any:
    """Return the module ``grpc``; in a forked process a copy of its own.

    What imports gRPC before the first call has its fork handlers, which are unsound.

    Raises:
        ServerFault: A copy cannot be loaded here.
    """
    global _broken
    with _lock:
        if _broken:
            _load_copy()
            _broken = False
        with _without_fork_handlers():
            import grpc
            import grpc.aio
    return grpc


@contextmanager
def _without_fork_handlers() -> Iterator[None]:
    """Have gRPC, imported in the block, do nothing at a fork.

    Its handlers, on by default, start threads in the child that may read from the parent's
    connections; and where other threads of the parent are at work they do nothing anyway.
    """
    before = os.environ.get(_FORK_SUPPORT)
    os.environ[_FORK_SUPPORT] = "0"
    try:
        yield
    finally:
        del os.environ[_FORK_SUPPORT]
        if before is not None:
            os.environ[_FORK_SUPPORT] = before


def let_go_after_fork(holder: Inheritable) -> None:
    """Have ``holder.let_go()`` called in processes that are forked off this one."""
    _holders.add(holder)


def keep_for_ever(*inherited: object) -> None:
    """Never free these objects, not at the interpreter's end either."""
    for thing in inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    global _lock, _broken
    _lock = threading.Lock()  # another thread of the parent may have held it
    _broken = "grpc" in sys.modules
    if _broken:
        gc.freeze()  # errors of streams, and more, lie in cycles: collecting them here crashes
    for holder in list(_holders):
        holder.let_go()


def _load_copy() -> None:
    """Put a second copy of gRPC into the place of the first."""
    inherited = {name: module for name, module in sys.modules.items() if _is_grpc(name)}
    keep_for_ever(*inherited.values())
    for name in inherited:
        del sys.modules[name]
    try:
        original = inherited[_EXTENSION].__file__ or ""
        with _copied_file(original) as path:
            finder = _ExtensionFinder(path)
            sys.meta_path.insert(0, finder)
            try:
                with _without_fork_handlers():
                    importlib.import_module("grpc.aio")
            finally:
                sys.meta_path.remove(finder)
        sys.modules[_EXTENSION].__file__ = original  # a child of this process makes a copy, too
    except (OSError, ImportError, AttributeError, KeyError) as error:
        sys.modules.update(inherited)
        raise ServerFault(
            "this process was forked from one that uses gRPC, which does not survive that "
            f"({error}); start worker processes by the method spawn or forkserver"
        ) from error


def _is_grpc(name: str) -> bool:
    return name == "grpc" or name.startswith("grpc.")


@contextmanager
def _copied_file(path: str) -> Iterator[str]:
    """Give the path of a copy in memory: the loader takes what it has loaded for the same again.

    It knows a file by its inode and by its name; the process is part of the name because a child of
    this one makes a copy, too.
    """
    copy = os.memfd_create("cygrpc")
    try:
        with open(path, "rb") as original, open(copy, "wb", closefd=False) as file:
            shutil.copyfileobj(original, file, 2**20)
        yield f"/proc/{os.getpid()}/fd/{copy}"
    finally:
        os.close(copy)


class _ExtensionFinder:
    """Finds gRPC's compiled module at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _EXTENSION:
            return None
        return spec_from_file_location(name, loader=ExtensionFileLoader(name, self._path))


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
