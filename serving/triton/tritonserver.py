"""Find a ``tritonserver`` and start it on a private repository.

Two are known: the one on the PATH (the vendor's container), and the CPU server 2.51 inside the
``nvidia-pytriton`` wheel, whose Python backend and stubs are laid out by hand here.
"""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from latentry.contract.errors import ServeError
from latentry.contract.files import open_append
from latentry.contract.importing import SEARCH_PATH
from latentry.contract.system import dying_with_parent
from latentry.serving.triton.heartbeats import SIGNS_FOLDER

SERVER_ID = "LATENTRY_SERVER_ID"
# Whoever may register shared memory can have another caller's image overwritten, silently. A secret
# would keep nobody out, as every user can read a process's arguments; but no HTTP/2 request may
# carry a header with an upper-case letter (RFC 9113, section 8.2.1), and gRPC resets those that do.
_SHUT_VERBS = "shared-memory,trace,logging"
_IMPOSSIBLE_KEY = "Shut-For-Everybody"
_LOG_FLAGS = {
    "error": ["--log-info=false", "--log-warning=false"],
    "warning": ["--log-info=false"],
    "info": [],
    "debug": ["--log-verbose=1"],
}


@dataclass(frozen=True)
class Installation:
    """A tritonserver on this machine.

    Attributes:
        binary: The program.
        wheel: Folder of the ``pytriton`` package where it is the wheel's server, else None.
    """

    binary: Path
    wheel: Path | None


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens; metrics are always on loopback."""

    address: str
    port: int
    metrics_port: int

    @property
    def url(self) -> str:
        """What a client on this machine connects to."""
        host = "127.0.0.1" if self.address in ("0.0.0.0", "::") else self.address
        return f"{bracketed(host)}:{self.port}"


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def find_tritonserver() -> Installation:
    """Return the tritonserver to use, the one on the PATH first.

    Raises:
        ServeError: There is none, or the wheel has no stub for this Python.
    """
    on_path = shutil.which("tritonserver")
    if on_path and Path(on_path).parent != Path(sys.prefix) / "bin":
        return Installation(Path(on_path), None)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServeError(
            "no tritonserver: none is on the PATH and nvidia-pytriton is not installed; "
            'pip install "latentry[serve,cpu]" on Linux with Python 3.11 or 3.12, '
            "or use the vendor's container"
        )
    wheel = Path(spec.submodule_search_locations[0])
    if not stub_path(wheel).exists():
        raise ServeError(
            f"the Triton in nvidia-pytriton has no stub for Python {sys.version_info.major}."
            f"{sys.version_info.minor}: {stub_path(wheel).name} is missing; use Python 3.11 or 3.12"
        )
    return Installation(wheel / "tritonserver" / "bin" / "tritonserver", wheel)


def stub_path(wheel: Path) -> Path:
    """Return the Python backend's stub for this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = wheel / "tritonserver" / "python_backend_stubs"
    return stubs / version / "triton_python_backend_stub"


def lay_out_backends(installation: Installation, folder: Path) -> list[str]:
    """Put the wheel's Python backend with this Python's stub in ``folder``; return the flags."""
    if installation.wheel is None:
        return []
    target = folder / "python"
    target.mkdir(parents=True)
    for source in (installation.wheel / "tritonserver" / "backends" / "python").iterdir():
        (target / source.name).symlink_to(source)
    (target / "triton_python_backend_stub").unlink(missing_ok=True)
    # Copied: the backend starts the stub by the path it finds beside its own library.
    shutil.copy2(stub_path(installation.wheel), target / "triton_python_backend_stub")
    return [f"--backend-directory={folder}"]


def server_command(
    installation: Installation,
    endpoint: Endpoint,
    *,
    repository: Path,
    backend_flags: list[str],
    shm_prefix: str,
    log_level: str,
    drain_s: float,
) -> list[str]:
    """Return the command line; docs/operations.md says why each flag is there."""
    return [
        str(installation.binary),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--allow-http=false",
        f"--grpc-address={bracketed(endpoint.address)}",
        f"--grpc-port={endpoint.port}",
        # As the clients' channel: they ping every 10 s, also between calls.
        "--grpc-http2-min-recv-ping-interval-without-data=5000",
        "--grpc-keepalive-permit-without-calls=true",
        # Messages that were answered are kept for the next ones otherwise, with all their memory.
        "--grpc-infer-allocation-pool-size=0",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={endpoint.metrics_port}",
        "--allow-gpu-metrics=false",
        f"--grpc-restricted-protocol={_SHUT_VERBS}:{_IMPOSSIBLE_KEY}={secrets.token_hex(16)}",
        f"--exit-timeout-secs={max(1, round(drain_s))}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        *backend_flags,
        *_LOG_FLAGS[log_level],
    ]


def server_environment(installation: Installation, server_id: str, signs: Path) -> dict[str, str]:
    """Return the environment in which the server finds this Python, its packages and ``signs``."""
    environment = {
        **os.environ,
        SERVER_ID: server_id,
        SIGNS_FOLDER: str(signs),
        SEARCH_PATH: os.pathsep.join(sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # The stub takes the packages of the first Python on the PATH: this one.
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    environment["PATH"] = os.pathsep.join(path)
    if installation.wheel is not None:
        libraries = [
            str(installation.wheel.parent / "nvidia_pytriton.libs"),
            sysconfig.get_config_var("LIBDIR"),
            os.environ.get("LD_LIBRARY_PATH", ""),
        ]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in libraries if part)
    return environment


def start_tritonserver(
    command: list[str], environment: dict[str, str], log_file: Path
) -> "subprocess.Popen[bytes]":
    """Start the server in a process group of its own; it dies with the calling thread's process.

    To be called from the main thread: Linux ties the death signal to the thread that forks.
    """
    with open_append(log_file) as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGKILL),
        )
