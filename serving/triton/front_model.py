"""The Triton Python-backend model in front of every generator."""

import json
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from latentry.contract.errors import LatentryError
from latentry.contract.importing import follow_search_path
from latentry.contract.wire import ENGINE_CLASS, FROM_STREAM, THREADS
from latentry.serving.entries.repository import read_entry
from latentry.serving.runtime.engines import EngineMissing
from latentry.serving.runtime.engines.registry import load_network
from latentry.serving.runtime.generator import Answer, Generator, load_generator
from latentry.serving.triton.heartbeats import Heart
from latentry.serving.triton.stub import (
    arrays_from_request,
    exit_with_parent,
    has_parameter,
    shutting_down,
    triton_error,
)

_REPORT_EVERY_S = 0.25
# What waited in Triton's queue when the server was told to stop is still drawn.
_QUEUED_S = 1.0


class FrontModel:
    """Triton calls ``initialize`` once and ``execute`` with every batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the networks, and run them once so that the first caller does not wait."""
        exit_with_parent()
        follow_search_path()
        self._heart = Heart(args["model_name"], args["model_instance_name"])
        config = json.loads(args["model_config"])
        threads = int(config["parameters"][THREADS]["string_value"])
        entry = read_entry(Path(args["model_repository"]) / args["model_version"])
        self._generator = load_generator(entry, partial(load_network, threads=threads))
        self._check_class(config["parameters"])
        with self._heart.execute(0):
            self._generator.warm_up()
        self._metrics = _Metrics(self._generator, args["model_name"], args["model_version"])
        self._heart.say_ready()

    def _check_class(self, parameters: dict[str, dict[str, str]]) -> None:
        """Refuse to draw by another engine class than the server tells its clients."""
        told = parameters.get(ENGINE_CLASS, {}).get("string_value")
        found = self._generator.engine_class
        if told not in (None, found):
            raise EngineMissing(
                f"this process runs the engine class {found} and the server tells {told}: an "
                "engine was replaced meanwhile; start the server again"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer Triton's ``requests``, one response each, in their order."""
        with self._heart.execute(len(requests)):
            if self._heart.draining_for_s > _QUEUED_S:
                return self._finish_streams(requests)
            return self._answer(requests)

    def _answer(self, requests: list[Any]) -> list[Any]:
        answers = self._generator.answer([arrays_from_request(request) for request in requests])
        return [_response_from_answer(answer) for answer in answers]

    def _finish_streams(self, requests: list[Any]) -> list[Any]:
        """Draw what a begun stream asks for and refuse everything else."""
        begun = [has_parameter(request, FROM_STREAM) for request in requests]
        kept = [request for request, goes_on in zip(requests, begun, strict=True) if goes_on]
        drawn = iter(self._answer(kept) if kept else ())
        return [
            next(drawn) if goes_on else _response_from_answer(shutting_down()) for goes_on in begun
        ]


def _response_from_answer(answer: Answer) -> Any:
    if isinstance(answer, LatentryError):
        return pb_utils.InferenceResponse(error=triton_error(answer))
    # Tensors are sent as the memory lies; a slice of a batch is contiguous already.
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items()]
    )


class _Metrics:
    """What the generator counts, in Triton's metrics, four times a second.

    Not at every batch: each increment is a message to Triton and back, which would make an idle
    caller wait for three of them.
    """

    def __init__(self, generator: Generator, model: str, version: str) -> None:
        self._generator = generator
        self._labels = {"model": model, "version": version}
        # A family that is let go takes its metrics with it.
        self._families: list[Any] = []
        self._metrics = {
            "samples": self._counter("latentry_samples_total", "Samples drawn"),
            "invalid": self._counter(
                "latentry_invalid_outputs_total", "Samples refused for NaN or infinity"
            ),
        }
        seconds = self._family("latentry_seconds_total", "Seconds spent, by phase")
        for phase in generator.tally.seconds:
            self._metrics[phase] = seconds.Metric(labels={**self._labels, "phase": phase})
        self._reported = dict.fromkeys(self._metrics, 0.0)
        threading.Thread(target=self._report_forever, daemon=True).start()

    def _counter(self, name: str, description: str) -> Any:
        return self._family(name, description).Metric(labels=self._labels)

    def _family(self, name: str, description: str) -> Any:
        kind = pb_utils.MetricFamily.COUNTER
        family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
        self._families.append(family)
        return family

    def _report_forever(self) -> None:
        while True:
            time.sleep(_REPORT_EVERY_S)
            tally = self._generator.tally
            counts = {"samples": tally.samples, "invalid": tally.invalid_outputs, **tally.seconds}
            for name, value in counts.items():
                if value > self._reported[name]:
                    self._metrics[name].increment(value - self._reported[name])
                    self._reported[name] = value
