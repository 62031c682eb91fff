"""Third-party noise, kept off the terminal and at hand for the error message."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

_LOGGERS = ("torch", "onnxscript", "onnx_ir")
_LINES_SHOWN = 8
# Said once in every process without torchvision, and of no consequence for a generator.
_BORING = "torchvision is not installed"


class Noise:
    """What was said while :func:`captured_noise` listened."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.warnings: list[warnings.WarningMessage] = []

    def __str__(self) -> str:
        """The last lines of it, each once, without what only the exporter's authors can mend."""
        warned = [
            str(item.message)
            for item in self.warnings
            if not issubclass(item.category, DeprecationWarning | FutureWarning)
        ]
        said = [*self.stream.getvalue().splitlines(), *warned]
        lines = dict.fromkeys(line.strip() for line in said if _BORING not in line)
        lines.pop("", None)
        return "\n".join(list(lines)[-_LINES_SHOWN:])


@contextmanager
def captured_noise() -> Iterator[Noise]:
    """Collect what the block writes to stdout, stderr, warnings and the exporters' loggers.

    Redirecting stderr is not enough for loggers: torch's handlers took hold of the real one when
    torch was imported. This changes state of the whole process while the block runs.
    """
    noise = Noise()
    handler = logging.StreamHandler(noise.stream)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(noise.stream))
        stack.enter_context(redirect_stderr(noise.stream))
        noise.warnings = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        for name in _loggers_with_handlers():
            stack.enter_context(_handlers_replaced(logging.getLogger(name), handler))
        yield noise


def _loggers_with_handlers() -> list[str]:
    """Return the loggers to quieten: the packages', and those below with handlers of their own."""
    below = tuple(f"{name}." for name in _LOGGERS)
    return [
        *_LOGGERS,
        *(
            name
            for name, logger in list(logging.root.manager.loggerDict.items())
            if name.startswith(below) and isinstance(logger, logging.Logger) and logger.handlers
        ),
    ]


@contextmanager
def _handlers_replaced(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
