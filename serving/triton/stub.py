"""What the models have in common inside Triton's stub processes: requests, errors, the end.

``triton_python_backend_utils`` exists only there. No engine is imported here: a stream model needs
none.
"""

import json
import os
import threading
import time
from typing import Any

import triton_python_backend_utils as pb_utils

from latentry.contract.errors import Draining, LatentryError, wire_code, wire_text
from latentry.contract.wire import Arrays

_PARENT_CHECK_S = 0.5


def arrays_from_request(request: Any) -> Arrays:
    """Return the input tensors of a Triton request by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def has_parameter(request: Any, name: str) -> bool:
    """Whether a Triton request carries this parameter as true."""
    return json.loads(request.parameters() or "{}").get(name) is True


def triton_error(error: LatentryError) -> Any:
    """Return the Triton error that clients map back to the same error."""
    names = {"INVALID_ARGUMENT": "INVALID_ARG"}
    code = wire_code(error)
    return pb_utils.TritonError(
        wire_text(error), getattr(pb_utils.TritonError, names.get(code, code))
    )


def shutting_down() -> Draining:
    """Return the error for what comes after the server was told to stop."""
    return Draining("the server is shutting down and takes no new requests")


def exit_with_parent() -> None:
    """End this stub when its Triton dies, also in the middle of a batch.

    Triton 2.51 leaves busy stubs behind when it is killed (python_backend issue 7481).
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
