"""Engines tell nobody what they are used for (docs/operations.md)."""

import os
import sys


def silence() -> None:
    """Keep engines that this process, or one that it starts, imports from telling their makers.

    ONNX Runtime from 1.29 on would begin as it is imported to write down what it is used for, and
    send it. OpenVINO and NNCF would make a folder at home, start a child and look a host up; where
    the package that does this is missing, they do without.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
