"""A real ``latentry serve`` for tests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

LATENTRY = Path(sys.executable).parent / "latentry"


@dataclass
class RunningServer:
    """A ``latentry serve`` in a process of its own."""

    process: "subprocess.Popen[str]"
    url: str
    metrics_url: str

    def triton_pid(self) -> int:
        """Return the pid of its tritonserver."""
        return int(psutil.Process(self.process.pid).children()[0].pid)

    def shared_memory(self) -> set[str]:
        """Return the names of its shared-memory regions."""
        flag = "shm-region-prefix-name="
        command = psutil.Process(self.triton_pid()).cmdline()
        prefix = next(part.partition(flag)[2] for part in command if flag in part)
        return {path.name for path in Path("/dev/shm").glob(f"{prefix}*")}

    def stub_pids(self) -> list[int]:
        """Return the pids of the processes that run the models."""
        return [child.pid for child in psutil.Process(self.triton_pid()).children(recursive=True)]


@contextmanager
def run_server(repository: Path, *options: str) -> Iterator[RunningServer]:
    """Serve ``repository`` on free ports until the block ends."""
    command = [str(LATENTRY), "serve", "--repository", str(repository), "--json"]
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
            process.wait(timeout=20)
