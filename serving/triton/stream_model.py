"""The decoupled Triton model ``generate_stream``: one request, many chunks, in order.

It forwards chunks to the batched model of the same server, so streams and unary requests share
batches, engines and every check.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from latentry.contract.errors import (
    BadRequest,
    LatentryError,
    NotFound,
    ServerFault,
    is_wire_text,
    listed,
)
from latentry.contract.wire import CONTINUES, FROM_STREAM, TO_BE_CONTINUED, Format
from latentry.serving.entries.manifest import Manifest
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.streaming import stream_from_request, text_from_tensor
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


class _ChunkFailed(Exception):
    """The batched model refused a chunk."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.triton_error = error


class StreamModel:
    """Triton calls ``execute`` with new requests while earlier ones still run."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what the other models take."""
        exit_with_parent()
        self._heart = Heart(args["model_name"], args["model_instance_name"], every_s=_BEAT_EVERY_S)
        entries = newest_entries(Path(args["model_repository"]).parent)
        self._manifests = {entry.name: entry.manifest for entry in entries}
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
        if "model" not in tensors:
            raise BadRequest("model is missing; name the generator to draw with")
        model = text_from_tensor("model", tensors["model"])
        manifest = self._manifest(model)
        most = manifest.serving.max_batch_size
        stream = stream_from_request(manifest.model.spec, tensors, max_batch_size=most)
        limit = manifest.serving.max_queue_size
        # With so short a queue, one chunk of a stream would have the next one refused as busy.
        in_flight = 1 if 0 < limit <= _IN_FLIGHT else _IN_FLIGHT
        await _send_chunks(sender, model, stream.chunks(most), in_flight)

    def _manifest(self, model: str) -> Manifest:
        if model not in self._manifests:
            known = listed(self._manifests)
            raise NotFound(f"model {model!r} is not being served; these are: {known}")
        return self._manifests[model]


def _end(sender: Any, error: Any = None) -> None:
    """Send the end mark, on the error itself where there is one."""
    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    if error is None:
        sender.send(flags=flags)
    else:
        sender.send(pb_utils.InferenceResponse(error=error), flags=flags)


async def _send_chunks(
    sender: Any, model: str, chunks: Iterator[tuple[int, dict[str, Any]]], in_flight: int
) -> None:
    waiting: deque[tuple[int, asyncio.Task[Any]]] = deque()
    try:
        for index, tensors in chunks:
            # The first chunk goes alone: sharing the cores would delay it.
            while waiting and (len(waiting) == in_flight or waiting[0][0] == 0):
                await _send_next(sender, waiting)
            if sender.is_cancelled():
                return
            waiting.append((index, asyncio.ensure_future(_draw(model, tensors))))
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


async def _draw(model: str, tensors: dict[str, Any]) -> Any:
    """Ask the batched model for one chunk."""
    request = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=_outputs_for(tensors),
        inputs=[pb_utils.Tensor(name, array) for name, array in tensors.items()],
        parameters={FROM_STREAM: True},
    )
    return await request.async_exec()


def _outputs_for(tensors: dict[str, Any]) -> list[str]:
    if "format" not in tensors:
        return list(Format.RAW.tensors)
    return list(Format(tensors["format"].flat[0].decode()).tensors)


def _without_row_axis(tensor: Any) -> Any:
    if tensor.name() != "encoded":
        return tensor
    return pb_utils.Tensor("encoded", tensor.as_numpy().reshape(-1))
