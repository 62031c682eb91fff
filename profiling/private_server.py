"""A ``latentry serve`` of our own on free ports, for as long as a block runs."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from latentry.contract.errors import ServeError
from latentry.contract.system import dying_with_parent
from latentry.profiling.load.target import TritonTarget

_STOP_S = 30.0
_OPTIONS = {
    "instances": "--instances",
    "threads": "--threads",
    "max_batch_size": "--max-batch-size",
    "max_queue_delay_microseconds": "--queue-delay-us",
    "max_queue_size": "--max-queue-size",
}


@contextmanager
def private_server(
    command: Sequence[str], repository: Path, model: str, build: str, serving: Mapping[str, int]
) -> Iterator[str]:
    """Serve the newest version of ``model``; give the address.

    Ctrl-C does not reach it, so that it is stopped in order; when this process dies, it ends too.
    To be entered in the main thread: Linux ties the death signal to the thread that forks.

    Args:
        command: Starts ``latentry``, such as ``["latentry"]``.
        repository: The model repository.
        model: Name of the model.
        build: Which of its builds.
        serving: Fields of a build's ``serving`` part.

    Raises:
        ServeError: It did not become ready; the message has its last words.
    """
    arguments = [*command, "serve", "--repository", str(repository), "--models", model, "--json"]
    arguments += ["--build", f"{model}={build}"]
    arguments += ["--port", "0", "--metrics-port", "0", "--drain-s", "2"]
    for name, option in _OPTIONS.items():
        if name in serving:
            arguments += [option, str(serving[name])]
    with (
        tempfile.TemporaryFile("w+") as words,
        subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGTERM),
        ) as process,
    ):
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                process.wait()
                words.seek(0)
                raise ServeError(f"a server for the search did not start: {words.read().strip()}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def private_target(
    command: Sequence[str], repository: Path, model: str, build: str, serving: Mapping[str, int]
) -> Iterator[TritonTarget]:
    """Serve likewise; give what load can be put on."""
    with (
        private_server(command, repository, model, build, serving) as url,
        TritonTarget(url, model) as target,
    ):
        yield target
