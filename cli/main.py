"""The command ``latentry``: a table of commands, and the one place where their errors end.

A room is imported when one of its commands runs, so that ``--help`` is quick and a client-only
installation has no need of torch. What takes long to import waits until Ctrl-C is looked after.
"""

import difflib
import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import FrameType
from typing import Any, NamedTuple

from latentry.cli.common.exit_codes import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_TRY_LATER,
    EXIT_USAGE,
)


class Command(NamedTuple):
    """``module:function`` (or ``module:app``, a ``typer.Typer``), help, and the extras it uses."""

    target: str
    help: str
    extras: str = ""


COMMANDS = {
    "train": Command("latentry.cli.train:train", "Train a generator.", "train"),
    "export": Command(
        "latentry.cli.export:export",
        "Export a checkpoint to a proved entry of the model repository.",
        "export,cpu",
    ),
    "build": Command(
        "latentry.cli.export:build", "Add a build of a model, run by another engine.", "export,cpu"
    ),
    "evaluate": Command(
        "latentry.cli.export:evaluate",
        "Measure how near a build draws to FP32.",
        "export,cpu",
    ),
    "models": Command(
        "latentry.cli.models:models", "List or remove the model repository's entries.", "cpu"
    ),
    "serve": Command(
        "latentry.cli.serve:serve", "Serve the model repository with Triton.", "serve,cpu"
    ),
    "health": Command("latentry.cli.health:health", "Tell whether a server is ready."),
    "generate": Command("latentry.cli.generate:generate", "Draw images into files."),
    "stream": Command("latentry.cli.stream:stream", "Draw many images into files as they come."),
    "synthesize": Command(
        "latentry.cli.synthesize:app",
        "Make a data set: a job that survives anything, and can be verified.",
        "synthesis,cpu",
    ),
    "profile": Command(
        "latentry.cli.profile:profile",
        "Measure a served model with perf_analyzer; find the configuration that holds a target.",
        "profile,cpu",
    ),
    "doctor": Command(
        "latentry.cli.doctor:doctor", "Check this machine and say what is missing.", "serve,cpu"
    ),
}

# The extras that bring a module; any other that is missing is a fault of ours.
_EXTRAS = {
    "fsspec": ("synthesis",),
    "jinja2": ("profile", "export"),
    "matplotlib": ("profile", "train"),
    "onnx": ("export",),
    "onnxruntime": ("cpu", "gpu"),
    "onnxscript": ("export",),
    "psutil": ("serve", "profile"),
    "pyarrow": ("synthesis",),
    "pytriton": ("serve",),
    "ray": ("ray",),
    "safetensors": ("export", "train"),
    "scipy": ("profile",),
    "skimage": ("train",),
    "sklearn": ("train",),
    "tensorrt": ("gpu",),
    "torch": ("export", "train"),
}
# What only some systems have.
_OF_SYSTEMS = ("fcntl", "grp", "pwd", "resource", "termios")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in ``arguments``, the process's own by default; return the exit code.

    0 done, 1 the input or the model is at fault, 2 usage, 75 try again later, 130 Ctrl-C.
    """
    # gRPC writes of every lost connection on standard error; the commands say it themselves.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        with redirect_stdout(_tolerant(sys.stdout)), redirect_stderr(_tolerant(sys.stderr)):
            return _main([*(sys.argv[1:] if arguments is None else arguments)] or ["--help"])
    finally:
        signal.signal(signal.SIGINT, before)


def _main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; whatever a command raises ends here."""
    from latentry.contract.errors import LatentryError

    name, *rest = arguments
    try:
        return _run(name, rest)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except LatentryError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _fail(_missing(name, error), EXIT_FAULT)
    except AttributeError as error:
        if error.obj is not os:
            raise
        return _fail(_needs_linux(name, f"os.{error.name}"), EXIT_FAULT)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        return _fail(str(error), EXIT_TRY_LATER if error.errno == errno.ENOSPC else EXIT_FAULT)


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in ("--help", "-h"):
        print(help_text(), flush=True)  # noqa: T201
    elif name == "--version":
        from importlib.metadata import version

        print(f"latentry {version('latentry')}", flush=True)  # noqa: T201
    elif name in COMMANDS:
        load_command(name).main(args=list(arguments), prog_name=f"latentry {name}")
    else:
        return _fail(_unknown(name), EXIT_USAGE)
    return 0


def help_text() -> str:
    """Return what ``latentry --help`` shows."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Usage: latentry COMMAND [OPTIONS]",
            "",
            "From a PyTorch generator to images over gRPC.",
            "",
            "Commands:",
            *(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()),
            "",
            "`latentry COMMAND --help` shows a command's options and examples.",
        ]
    )


def load_command(name: str) -> Any:
    """Return the command ``name`` with its room imported, ready to be called with arguments."""
    import inspect

    import typer

    module, _, attribute = COMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(target)
        target = app
    command = typer.main.get_command(target)
    for described in (command, *getattr(command, "commands", {}).values()):
        # Left to itself, typer breaks the lines of a paragraph where the source does.
        described.help = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(described.help or ""))
    return command


def _missing(name: str, error: ModuleNotFoundError) -> str:
    """Return what to do about a missing module; raises ``error`` where it is a fault of ours."""
    module = (error.name or "").partition(".")[0]
    if module in _OF_SYSTEMS:
        return _needs_linux(name, module)
    if module not in _EXTRAS:
        raise error
    extras = COMMANDS[name].extras.split(",") if COMMANDS[name].extras else []
    if not set(extras) & set(_EXTRAS[module]):
        extras.append(_EXTRAS[module][0])
    return f'latentry {name} needs {module}: pip install "latentry[{",".join(extras)}]"'


def _needs_linux(name: str, what: str) -> str:
    return (
        f"latentry {name} needs Linux: this system has no {what}. health, generate and stream "
        "run everywhere, with a server elsewhere"
    )


def _tolerant(stream: Any) -> Any:
    """Return ``stream`` as an output whose reader may leave; None, which a closed one is, as is."""
    return None if stream is None else _Output(stream)


class _Output:
    """An output whose reader may leave, as of a pipe: then nobody is told, and the work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropped_where_it_fails():
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        with self._dropped_where_it_fails():
            self._stream.flush()

    @contextmanager
    def _dropped_where_it_fails(self) -> Iterator[None]:
        """Nothing more goes to an output that fails, at the interpreter's end neither."""
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except OSError:
            self._drop()
            raise

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but in the middle of an import, end at once.

    There, an exception comes out in many disguises, or out of C++ that ends the process.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(EXIT_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    what = "option" if name.startswith("-") else "command"
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    return f"latentry has no {what} {name}; {hint}"


def _fail(message: str, code: int) -> int:
    from latentry.contract.files import printable

    if sys.stderr is not None:  # closed: and None would be standard output to print
        print(printable(f"error: {message}"), file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
