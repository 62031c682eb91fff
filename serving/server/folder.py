"""The private folder of one running server, and the sweeping of those that were left behind.

Triton never sees the model repository itself: one stray folder in it would keep the server from
starting. It gets links to verified files, in a folder that only this user can read. The folder
holds all that is needed to clean up after a supervisor that was killed.
"""

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import psutil

from latentry.contract.errors import ServeError
from latentry.contract.files import open_regular
from latentry.contract.wire import ENGINE_CLASS, STREAM_SUFFIX
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    DEFAULT_BUILD,
    FP32,
    MODEL_JSON,
    RECORD_JSON,
)
from latentry.serving.entries.repository import (
    MODEL_FILE,
    MODEL_PY,
    STREAM_MODEL_PY,
    Entry,
)
from latentry.serving.entries.sealed import sealed_bytes
from latentry.serving.entries.triton_config import CONFIG_FILE, config_pbtxt, stream_config_pbtxt
from latentry.serving.runtime.engines.registry import expected_class
from latentry.serving.triton.heartbeats import DRAIN_MARK, HEARTBEATS
from latentry.serving.triton.tritonserver import SERVER_ID

_SHM = Path("/dev/shm")
# When, after its start, the Python backend has made its folder in /tmp at the latest.
_FOLDER_MADE_S = 60.0
_YOUNG_S, _LOADED_S, _AGAIN_S = 10.0, 1.0, 0.01
_KERNEL = 2  # process number of what starts the kernel's own threads, which have no environment


@dataclass(eq=False)
class ServerFolder:
    """A private folder.

    Attributes:
        path: The folder, mode 0700.
        server_id: Marks every process of this server, in its environment.
        signs: Where its processes give signs of life and find the mark to take nothing new; another
            folder after each :meth:`fill`.
    """

    path: Path
    server_id: str
    signs: Path = field(default=Path(os.devnull), repr=False)
    _lock: IO[str] | None = field(default=None, repr=False)
    _held: dict[Path, IO[bytes]] = field(default_factory=dict, repr=False)

    @property
    def repository(self) -> Path:
        """What Triton gets as its model repository."""
        return self.path / "repository"

    @property
    def backends(self) -> Path:
        """What Triton gets as its backend folder, where it needs one."""
        return self.path / "backends"

    @property
    def lock_file(self) -> Path:
        """What the supervisor keeps locked."""
        return self.path / "lock"

    @property
    def log_file(self) -> Path:
        """Where the server's output goes unless the user names a file."""
        return self.path / "tritonserver.log"

    @property
    def shm_prefix(self) -> str:
        """How the names of this server's shared-memory regions begin."""
        return f"latentry_{self.server_id}_"

    def fill(self, entries: Sequence[Entry], streams: Collection[str]) -> list[Entry]:
        """Make anew what Triton is to find: links to ``entries`` (verified) and stream models.

        The folder itself is made where it is missing, and kept locked from then on. Returns the
        entries as they lie there. Their files are held open from the first time on, so that a
        server starts again with what it began with, whatever was removed meanwhile.

        Raises:
            OSError: A file is gone before it was held.
        """
        self._hold_lock()
        for part in (self.repository, self.backends):
            shutil.rmtree(part, ignore_errors=True)
        self._remove_shared_memory()
        # Never twice of one name: whoever knows it, as all users do, could make it first.
        self.signs = Path(tempfile.mkdtemp(prefix=self.shm_prefix, suffix="_signs", dir=_SHM))
        (self.signs / HEARTBEATS).mkdir()
        linked = [self._link_entry(entry) for entry in entries]
        for entry in linked:
            if entry.name in streams:
                _write_stream_model(entry, self.repository)
        return linked

    def mark_draining(self) -> bool:
        """Tell the models to take nothing new; False where that cannot be told."""
        try:
            (self.signs / DRAIN_MARK).touch()
        except OSError:
            return False
        return True

    def close_shared_memory(self) -> None:
        """Take the shared memory of this server away from other users.

        Triton makes it readable by everybody, whatever the umask says. Who opened it at once keeps
        it; so this is no boundary on a machine that is shared with strangers.
        """
        for region in _SHM.glob(f"{self.shm_prefix}*"):
            with suppress(OSError):
                _close_to_others(region)

    def kill_leftovers(self) -> None:
        """Kill every process of this server and remove its shared memory."""
        marked = [process for process in psutil.process_iter() if self._owns(process)]
        for process in marked:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(marked, timeout=5)
        self._remove_shared_memory()

    def remove(self) -> None:
        """Kill and remove everything."""
        self.kill_leftovers()
        shutil.rmtree(self.path, ignore_errors=True)
        for file in (self._lock, *self._held.values()):
            if file is not None:
                file.close()

    def _link_entry(self, entry: Entry) -> Entry:
        """Link and write what Triton is to find of ``entry``; return it as it lies there."""
        folder = self.repository / entry.name / str(entry.version)
        build = folder / BUILDS / entry.build.name
        build.mkdir(parents=True)
        for path in entry.files().keys() - {Path(MODEL_FILE)}:
            (folder / path).symlink_to(self._hold(entry.folder / path))
        _write(folder / MODEL_FILE, MODEL_PY)
        _write(folder / MODEL_JSON, entry.model.text)
        _write(folder / RECORD_JSON, sealed_bytes(entry.record))
        # As it is served: with the options of this server, and whatever is tuned meanwhile.
        _write(build / BUILD_JSON, sealed_bytes(entry.build))
        if entry.build.name != FP32:
            _write(folder / DEFAULT_BUILD, entry.build.name.encode())
        config = config_pbtxt(entry, {ENGINE_CLASS: expected_class(entry.build)})
        (folder.parent / CONFIG_FILE).write_text(config)
        return replace(entry, folder=folder)

    def _hold(self, path: Path) -> Path:
        """Return a name by which the file at ``path`` is found as long as this process lives."""
        if path not in self._held:
            self._held[path] = open_regular(path)
        return Path(f"/proc/{os.getpid()}/fd/{self._held[path].fileno()}")

    def _remove_shared_memory(self) -> None:
        for region in _SHM.glob(f"{self.shm_prefix}*"):
            with suppress(OSError):
                status = region.lstat()
                if status.st_uid != os.getuid():
                    continue  # anybody may put something there, which nobody else can remove
                if stat.S_ISDIR(status.st_mode):
                    shutil.rmtree(region, ignore_errors=True)
                else:
                    region.unlink()

    def _hold_lock(self) -> None:
        """Make the folder where it is missing, wherever there is one now, and lock it."""
        while self._lock is None or not self._is_locked(self._lock):
            self.path = _home() / self.server_id
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._lock = self.lock_file.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _is_locked(self, lock: IO[str]) -> bool:
        """Whether ``lock`` still is the file there; a sweep may have been quicker."""
        try:
            return os.path.samestat(os.fstat(lock.fileno()), self.lock_file.stat())
        except OSError:
            return False

    def _owns(self, process: psutil.Process) -> bool:
        try:
            # While a program is being loaded, the kernel shows an empty environment for a moment.
            last_s = time.monotonic() + _LOADED_S
            while not (environment := process.environ()) and _is_young(process):
                if time.monotonic() > last_s:
                    break
                time.sleep(_AGAIN_S)
            return environment.get(SERVER_ID) == self.server_id
        except (psutil.Error, OSError):
            return False


def _is_young(process: psutil.Process) -> bool:
    """Whether a program may still be being loaded; on a busy machine that takes seconds."""
    return process.ppid() != _KERNEL and bool(time.time() - process.create_time() < _YOUNG_S)


@contextmanager
def create_server_folder() -> Iterator[ServerFolder]:
    """Give a new private folder; it and all that belongs to it is removed afterwards."""
    server_id = secrets.token_hex(4)
    folder = ServerFolder(_home() / server_id, server_id)
    try:
        yield folder
    finally:
        folder.remove()


def sweep_server_folders() -> list[str]:
    """Clean up after servers whose supervisor is gone; return their ids."""
    swept = []
    for path in _home().iterdir():
        folder = ServerFolder(path, path.name)
        try:
            with folder.lock_file.open() as lock:
                # Locks end with their process, however it ended, and with the machine.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.remove()
        except OSError:
            continue  # its supervisor lives, or is just making it
        swept.append(folder.server_id)
    return swept


def remove_stub_folders(since: float) -> None:
    """Remove the empty folders that a killed Triton's Python backend left in /tmp.

    It makes them as it starts; one that another server may have made as it started stays, because
    Triton aborts at its end where its folder is gone.

    Args:
        since: Time of the server's start, seconds since the epoch.
    """
    others = [
        process.info["create_time"]
        for process in psutil.process_iter(["name", "create_time"])
        if process.info["name"] == "tritonserver"
    ]
    for folder in Path("/tmp").glob("python_env_??????"):
        with suppress(OSError):  # in use, gone, or somebody else's
            status = folder.stat()
            made = status.st_mtime
            theirs = any(start - 1 <= made <= start + _FOLDER_MADE_S for start in others)
            ours = status.st_uid == os.getuid() and since - 1 <= made <= since + _FOLDER_MADE_S
            if ours and not theirs:
                folder.rmdir()


def check_starts_programs() -> Path:
    """Return the folder of all server folders, from which the wheel's model processes are started.

    Raises:
        ServeError: Others can look into it, or its file system starts no programs.
    """
    home = _home()
    if os.statvfs(home).f_flag & os.ST_NOEXEC:
        raise ServeError(
            f"{home} is on a file system that starts no programs (mounted noexec), and Triton's "
            "model processes are started from there; set XDG_RUNTIME_DIR to a folder that does"
        )
    return home


def _home() -> Path:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    # That of a session goes with the session, which a server under nohup outlives.
    base = base if base.is_dir() else Path(tempfile.gettempdir())
    home = base / f"latentry-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or home.is_symlink():
        raise ServeError(
            f"{home} belongs to or can be read by somebody else; remove it, or set XDG_RUNTIME_DIR"
        )
    return home


def _close_to_others(region: Path) -> None:
    """Take a file away from other users; raises OSError where it is a link or cannot be opened."""
    # Anybody may have put a link there, under whose name the user's own files would be changed.
    descriptor = os.open(region, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    """Write a new file; never through a link, which would lead into the model repository."""
    with path.open("xb") as file:
        file.write(data)


def _write_stream_model(entry: Entry, repository: Path) -> None:
    folder = repository / f"{entry.name}{STREAM_SUFFIX}"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / MODEL_FILE).write_bytes(STREAM_MODEL_PY)
    (folder / CONFIG_FILE).write_text(stream_config_pbtxt(entry))
