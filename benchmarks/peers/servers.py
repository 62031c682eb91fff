"""Starts a peer's server in a folder of its own, finds its processes, and ends them."""

import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from peers.catalogue import Peer, Settings
from peers.environments import HOME, bin_folder
from peers.networks import Artefacts

from latentry.serving.triton.tritonserver import Installation, lay_out_backends, server_environment

_MARK = "LATENTRY_PEER"
_PYTRITON_REGION = "pytrtion"  # sic, followed by the number of its process
_READY_S = 120.0
_STOP_S = 20.0
_LOG_SHOWN = 3000


class PeerFailed(Exception):
    """A peer's server did not start, or ended; holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: On loopback.
        process: The one that was started.
        mark: In the environment of all its processes.
        log: What it prints.
    """

    port: int
    process: "subprocess.Popen[bytes]"
    mark: str
    log: Path

    def check(self) -> None:
        """Raise PeerFailed if it has ended."""
        if self.process.poll() is not None:
            raise PeerFailed(f"it ended with {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-_LOG_SHOWN:]

    def processes(self) -> list[psutil.Process]:
        """Return all its processes, also those that have left its group or lost their parent."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def memory_bytes(self) -> int:
        """Return what its processes hold, pages that are shared being shared out (PSS)."""
        return sum(_pss(process.pid) for process in self.processes())

    def cpu_s(self) -> float:
        """Return the processor time that its processes have used."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """End everything: politely, then not; remove shared memory that PyTriton leaves."""
        names = [f"{_PYTRITON_REGION}{process.pid}-" for process in self.processes()]
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_S)
        left = self.processes()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
        self.process.wait()
        for region in Path("/dev/shm").glob(f"{_PYTRITON_REGION}*"):
            if region.name.startswith(tuple(names)):
                region.unlink(missing_ok=True)

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == self.mark
        except (psutil.Error, OSError):
            return False


@contextmanager
def running(peer: Peer, artefacts: Artefacts, settings: Settings, logs: Path) -> Iterator[Server]:
    """Start ``peer`` with ``settings``, give it as soon as it has a process, and end it."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-")))
        fill(work, peer, artefacts, settings)
        port, http_port = free_ports(2)
        mark = secrets.token_hex(8)
        environment = _environment(peer, artefacts, work) | dict(settings)
        environment |= {_MARK: mark, "PORT": str(port), "HTTP_PORT": str(http_port)}
        command = peer.command
        if peer.name == "triton":
            environment, flags = _triton(peer, environment, work, mark)
            command = " ".join([command, *flags])
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{peer.name}-{artefacts.network.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = Server(port, process, mark, log)
        stack.callback(server.stop)
        yield server


def fill(work: Path, peer: Peer, artefacts: Artefacts, settings: Settings) -> None:
    """Put in ``work`` what the peer's user would have there."""
    shutil.copytree(peer.folder, work, dirs_exist_ok=True)
    (work / "tmp").mkdir()
    for path in artefacts.folder.iterdir():
        if not (work / path.name).exists():
            (work / path.name).symlink_to(path.resolve())
    for config in work.glob("repository/*/config.pbtxt"):  # Triton's, where nothing else is read
        config.write_text(string.Template(config.read_text()).substitute(settings))
        (config.parent / "1" / "generator.onnx").symlink_to(work / "generator.onnx")


def wait_until_ready(server: Server, ask: Callable[[int], object]) -> float:
    """Ask until there is an answer; return the seconds that it took.

    Raises:
        PeerFailed: It ended, or did not answer in time.
    """
    start, last = time.monotonic(), None
    while (elapsed := time.monotonic() - start) < _READY_S:
        server.check()
        try:
            ask(server.port)
        except Exception as error:  # not there yet, or not yet able to answer
            last = error
            time.sleep(0.1)
        else:
            return elapsed
    raise PeerFailed(f"no answer after {_READY_S:g} s ({last!r}): {server.last_words()}")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _environment(peer: Peer, artefacts: Artefacts, work: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return kept | {
        "PATH": os.pathsep.join([str(bin_folder(peer)), "/usr/local/bin", "/usr/bin", "/bin"]),
        "WIDTH": str(artefacts.network.width),
        "PYTHONDONTWRITEBYTECODE": "1",
        # PyTriton's documentation asks for it where Python is not the system's own.
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        # What these would otherwise leave behind or send away.
        "TMPDIR": str(work / "tmp"),
        "PYTRITON_HOME": str(work / "pytriton"),
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_TMPDIR": str(work),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _triton(
    peer: Peer, environment: dict[str, str], work: Path, mark: str
) -> tuple[dict[str, str], list[str]]:
    """Lay out the tritonserver of the wheel in the peer's environment, as its image would be."""
    (wheel,) = (HOME / peer.name).glob("lib/python*/site-packages/pytriton")
    installation = Installation(wheel / "tritonserver" / "bin" / "tritonserver", wheel)
    (work / "bin").mkdir()
    (work / "bin" / "tritonserver").symlink_to(installation.binary)
    flags = lay_out_backends(installation, work / "backends")
    flags.append(f"--backend-config=python,shm-region-prefix-name=peer_{mark}_")
    libraries = server_environment(installation, mark, work)["LD_LIBRARY_PATH"]
    path = os.pathsep.join([str(work / "bin"), environment["PATH"]])
    return environment | {"LD_LIBRARY_PATH": libraries, "PATH": path}, flags


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
