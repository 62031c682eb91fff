"""The Triton Python-backend model in front of every generator.

``triton_python_backend_utils`` exists only inside Triton's stub process. Triton 2.51 can send the
error codes named in :func:`_code` and no response parameters.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from latentry.serving.engines.onnxruntime_cpu import OnnxRuntimeEngine
from latentry.serving.errors import BadRequest, LatentryError, NotFound
from latentry.serving.generator import Answer, Generator, Tally, load_generator
from latentry.serving.wire import THREADS, Arrays

_PARENT_CHECK_S = 0.5


class FrontModel:
    """Triton calls ``initialize`` once and ``execute`` with every batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the networks, and run them once so that the first caller does not wait."""
        exit_with_parent()
        config = json.loads(args["model_config"])
        threads = int(config["parameters"][THREADS]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._generator = load_generator(
            folder, lambda model: OnnxRuntimeEngine(model, threads=threads)
        )
        self._generator.warm_up()
        self._metrics = _Metrics(args["model_name"], args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer Triton's ``requests``, one response each, in their order."""
        answers = self._generator.answer([arrays_from_request(request) for request in requests])
        responses = [_response_from_answer(answer) for answer in answers]
        self._metrics.report(self._generator)
        return responses


def arrays_from_request(request: Any) -> Arrays:
    """Return the input tensors of a Triton request by name."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def triton_error(error: LatentryError) -> Any:
    """Return the Triton error that clients map back to the same error."""
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, BadRequest):
        code = pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, NotFound):
        code = pb_utils.TritonError.NOT_FOUND
    return pb_utils.TritonError(str(error), code)


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


def _response_from_answer(answer: Answer) -> Any:
    if isinstance(answer, LatentryError):
        return pb_utils.InferenceResponse(error=triton_error(answer))
    # Tensors are sent as the memory lies; a slice of a batch is contiguous already.
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items()]
    )


class _Metrics:
    """What the generator counts, in Triton's metrics."""

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}

        def counter(name: str, description: str, **more: str) -> Any:
            family = pb_utils.MetricFamily(
                name=name, description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            # A family that is let go takes its metrics with it.
            self._families.append(family)
            return family.Metric(labels={**labels, **more})

        self._families: list[Any] = []
        self._samples = counter("latentry_samples_total", "Samples drawn")
        self._invalid = counter(
            "latentry_invalid_outputs_total", "Samples refused for NaN or infinity"
        )
        self._seconds = {
            phase: counter("latentry_seconds_total", "Seconds spent, by phase", phase=phase)
            for phase in Tally().seconds
        }

    def report(self, generator: Generator) -> None:
        """Add the generator's tally to the metrics and start a new one."""
        tally, generator.tally = generator.tally, Tally()
        self._samples.increment(tally.samples)
        if tally.invalid_outputs:
            self._invalid.increment(tally.invalid_outputs)
        for phase, seconds in tally.seconds.items():
            if seconds:
                self._seconds[phase].increment(seconds)
