"""The decoupled Triton model ``NAME.stream`` of a generator: one request, many chunks, in order.

It forwards chunks to the batched model of the same server, so streams and unary requests share
batches, engines and every check.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from latentry.contract.errors import LatentryError, ServerFault, is_wire_text
from latentry.contract.importing import follow_search_path
from latentry.contract.spec import spec_from_json
from latentry.contract.wire import (
    CONTINUES,
    FROM_STREAM,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    SPEC,
    STREAM_OF,
    TO_BE_CONTINUED,
)
from latentry.serving.runtime.streaming import stream_from_request
from latentry.serving.triton.heartbeats import Heart
from latentry.serving.triton.stub import (
    arrays_from_request,
    exit_with_parent,
    has_parameter,
    shutting_down,
    triton_error,
)

# One chunk is drawn while the next waits in the queue, so the engines never idle.
_IN_FLIGHT = 2
# How soon the mark is seen that nothing new is taken: it delays the end of the server.
_BEAT_EVERY_S = 0.1


Draw = Callable[[dict[str, Any]], Coroutine[Any, Any, Any]]


class _ChunkFailed(Exception):
    """The batched model refused a chunk."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.triton_error = error


class StreamModel:
    """Triton calls ``execute`` with new requests while earlier ones still run."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read from the configuration what the generator takes."""
        exit_with_parent()
        follow_search_path()
        self._heart = Heart(args["model_name"], args["model_instance_name"], every_s=_BEAT_EVERY_S)
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self._model = parameters[STREAM_OF]
        self._spec = spec_from_json(parameters[SPEC], f"the configuration of {config['name']}")
        self._most = int(parameters[MAX_BATCH_SIZE])
        limit = int(parameters[MAX_QUEUE_SIZE])
        # With so short a queue, one chunk of a stream would have the next one refused as busy.
        self._in_flight = 1 if 0 < limit <= _IN_FLIGHT else _IN_FLIGHT
        self._heart.say_ready()

    async def execute(self, requests: list[Any]) -> None:
        """Answer every request with chunks and an end mark."""
        self._heart.move_to_loop()
        await asyncio.gather(*(self._answer(request) for request in requests))

    async def _answer(self, request: Any) -> None:
        sender = request.get_response_sender()
        continues = has_parameter(request, CONTINUES)
        self._heart.begin_request(continues=continues)
        goes_on = False
        try:
            if self._heart.draining_for_s and not continues:
                raise shutting_down()
            await self._stream(request, sender)
            goes_on = has_parameter(request, TO_BE_CONTINUED) and not sender.is_cancelled()
        except LatentryError as error:
            _end(sender, triton_error(error))
        except _ChunkFailed as failed:
            # Already one of the contract's errors, from the model itself or from Triton's queue;
            # unless Triton stops, which it says in many ways, never in brackets.
            stopping = self._heart.draining_for_s and not is_wire_text(str(failed))
            _end(sender, triton_error(shutting_down()) if stopping else failed.triton_error)
        except Exception as error:
            # Without an end mark the caller would wait forever.
            _end(sender, triton_error(ServerFault(repr(error))))
        else:
            _end(sender)
        finally:
            self._heart.end_request(to_be_continued=goes_on)

    async def _stream(self, request: Any, sender: Any) -> None:
        tensors = arrays_from_request(request)
        stream = stream_from_request(self._spec, tensors, max_batch_size=self._most)
        outputs = [
            name for item in self._spec.outputs for name in item.tensors(stream.image_format)
        ]
        draw = partial(_draw, self._model, outputs)
        await _send_chunks(sender, draw, stream.chunks(self._most), self._in_flight)


def _end(sender: Any, error: Any = None) -> None:
    """Send the end mark, on the error itself where there is one."""
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    if error is None:
        sender.send(flags=flags)
    else:
        sender.send(pb_utils.InferenceResponse(error=error), flags=flags)


async def _send_chunks(
    sender: Any, draw: Draw, chunks: Iterator[tuple[int, dict[str, Any]]], in_flight: int
) -> None:
    waiting: deque[tuple[int, asyncio.Task[Any]]] = deque()
    try:
        for index, tensors in chunks:
            # The first chunk goes alone: sharing the cores would delay it.
            while waiting and (len(waiting) == in_flight or waiting[0][0] == 0):
                await _send_next(sender, waiting)
            if sender.is_cancelled():
                return
            waiting.append((index, asyncio.ensure_future(draw(tensors))))
        while waiting and not sender.is_cancelled():
            await _send_next(sender, waiting)
    finally:
        # What is under way cannot be stopped, but must be awaited: it holds shared memory.
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def _send_next(sender: Any, waiting: "deque[tuple[int, asyncio.Task[Any]]]") -> None:
    index, task = waiting.popleft()
    response = await task
    if response.has_error():
        raise _ChunkFailed(response.error())
    outputs = [_without_row_axis(tensor) for tensor in response.output_tensors()]
    outputs.append(pb_utils.Tensor("index", np.array([index], np.int64)))
    sender.send(pb_utils.InferenceResponse(outputs))


async def _draw(model: str, outputs: list[str], tensors: dict[str, Any]) -> Any:
    """Ask the batched model for these outputs of one chunk."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, array) for name, array in tensors.items()],
        parameters={FROM_STREAM: True},
    )
    return await request.async_exec()


def _without_row_axis(tensor: Any) -> Any:
    if not tensor.name().endswith(".encoded"):
        return tensor
    return pb_utils.Tensor(tensor.name(), tensor.as_numpy().reshape(-1))
