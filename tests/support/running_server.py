"""A real ``latentry serve`` for tests."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

LATENTRY = Path(sys.executable).parent / "latentry"


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> float:
    """Return the seconds until ``condition`` held; fail where it never did."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - start


def open_files(prefix: Path) -> list[str]:
    """Return the paths that begin so and that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(os.readlink(link))
    return [path for path in found if path.startswith(str(prefix))]


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has reaped yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@dataclass
class RunningServer:
    """A ``latentry serve`` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    metrics_url: str

    def triton_pid(self) -> int:
        """Return the pid of its tritonserver."""
        return int(psutil.Process(self.process.pid).children()[0].pid)

    @cached_property
    def _shm_prefix(self) -> str:
        flag = "shm-region-prefix-name="
        command = psutil.Process(self.triton_pid()).cmdline()
        return next(part.partition(flag)[2] for part in command if flag in part)

    def shared_memory(self) -> set[str]:
        """Return the names of its shared-memory regions; once asked, after its end, too."""
        return {path.name for path in Path("/dev/shm").glob(f"{self._shm_prefix}*")}

    def stub_pids(self) -> list[int]:
        """Return the pids of the processes that run the models."""
        return [child.pid for child in psutil.Process(self.triton_pid()).children(recursive=True)]

    def stub_pids_of(self, model: str) -> list[int]:
        """Return the pids of the processes that run ``model``."""
        stubs = map(psutil.Process, self.stub_pids())
        pids = [stub.pid for stub in stubs if f"/{model}/" in " ".join(stub.cmdline())]
        assert pids, f"no process runs {model}"
        return pids

    def metric(self, name: str, model: str) -> float:
        """Return what is reported, four times a second, of what is counted."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            text = answer.read().decode()
        pattern = rf'^{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)$'
        return sum(map(float, re.findall(pattern, text, re.MULTILINE)))

    def waiting(self, model: str) -> float:
        """Return how many requests for a model wait for its processes."""
        return self.metric("nv_inference_pending_request_count", model)

    @contextmanager
    def stopped(self, model: str) -> Iterator[None]:
        """Let the processes of a model do nothing until the block ends; requests pile up."""
        stubs = [psutil.Process(pid) for pid in self.stub_pids_of(model)]
        try:
            for stub in stubs:
                stub.suspend()
            yield
        finally:
            for stub in stubs:
                stub.resume()


@contextmanager
def run_server(
    repository: Path, *options: str, command: Sequence[str] = (str(LATENTRY),)
) -> Iterator[RunningServer]:
    """Serve ``repository`` on free ports until the block ends; ``command`` is the program."""
    command = [*command, "serve", "--repository", str(repository), "--json"]
    command += ["--port", "0", "--metrics-port", "0", "--drain-s", "3", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "latentry serve ended before it was ready"
            ready = json.loads(line)
            yield RunningServer(process, ready["url"], ready["metrics_url"])
        finally:
            process.terminate()
            process.wait(timeout=120)
