import logging
import sys
import warnings

import pytest

from latentry.export.graphs.quiet import captured_noise


def test_everything_said_is_kept_and_nothing_gets_out(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_noise() as noise:
        sys.stdout.write("to stdout\n\n")
        sys.stderr.write("to stderr\n")
        logging.getLogger("torch.onnx").warning("to a logger")
        logging.getLogger("onnxscript.optimizer").warning("to another logger")
        warnings.warn("a warning", stacklevel=1)
        warnings.warn("for the exporter's authors", FutureWarning, stacklevel=1)
    said = str(noise).splitlines()
    assert said == ["to stdout", "to stderr", "to a logger", "to another logger", "a warning"]
    assert capfd.readouterr() == ("", "")


def test_each_line_is_told_once_and_only_the_last_ones() -> None:
    with captured_noise() as noise:
        sys.stdout.write("same\n\n" * 20 + "".join(f"line {i}\n" for i in range(20)))
        logging.getLogger("torch.onnx").warning("torchvision is not installed. Skipping")
    assert str(noise).splitlines() == [f"line {i}" for i in range(12, 20)]


def test_handlers_and_filters_come_back_after_an_error() -> None:
    logger = logging.getLogger("torch")
    before, filters = logger.handlers, list(warnings.filters)
    with pytest.raises(ZeroDivisionError, match="division"), captured_noise():
        _ = 1 / 0
    assert logger.handlers is before
    assert warnings.filters == filters
