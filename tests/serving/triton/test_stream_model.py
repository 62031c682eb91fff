"""How the stream model asks for its chunks, with what Triton gives a model in its place."""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToJson  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from latentry.contract.images import png_from_uint8
from latentry.serving.entries.repository import newest_entries
from latentry.serving.entries.triton_config import stream_config_pbtxt
from latentry.serving.entries.tuning import with_serving
from latentry.serving.triton.heartbeats import DRAIN_MARK, HEARTBEATS, SIGNS_FOLDER


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    INVALID_ARG, NOT_FOUND, UNAVAILABLE, INTERNAL = range(4)

    def __init__(self, text: str, code: int = INTERNAL) -> None:
        self._text, self.code = text, code

    def message(self) -> str:
        return self._text


class InferenceResponse:
    def __init__(self, outputs: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._outputs, self._error = list(outputs), error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs


class Batched:
    """The batched model of the same server: how many chunks it has at a time, and at most."""

    def __init__(self) -> None:
        self.under_way = self.most = self.asked = 0
        self.error: TritonError | None = None

    async def draw(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> InferenceResponse:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        if self.error is not None:
            return InferenceResponse(error=self.error)
        rows = len(inputs[0].as_numpy())
        image = np.zeros((rows, 4, 4, 3), np.uint8)
        files = np.array([[png_from_uint8(one)] for one in image], np.object_)
        made = {"image": image, "image.encoded": files}
        return InferenceResponse([Tensor(name, made[name]) for name in outputs])


class Sender:
    """Takes what is sent; the caller goes after so many responses."""

    def __init__(self, taken: int = 10**6) -> None:
        self.sent: list[InferenceResponse] = []
        self.ends = 0
        self._taken = taken

    def is_cancelled(self) -> bool:
        return len(self.sent) >= self._taken

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        self.ends += flags
        if response is not None:
            self.sent.append(response)


class Request:
    def __init__(self, sender: Sender, tensors: dict[str, Any], **parameters: bool) -> None:
        self._sender = sender
        self._tensors = [Tensor(name, np.array(value)) for name, value in tensors.items()]
        self._parameters = json.dumps(parameters)

    def inputs(self) -> list[Tensor]:
        return self._tensors

    def parameters(self) -> str:
        return self._parameters

    def get_response_sender(self) -> Sender:
        return self._sender


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Batched]:
    """Put what Triton gives its models in its place."""
    model = Batched()

    class InferenceRequest:
        def __init__(self, *, requested_output_names: Sequence[str], **arguments: Any) -> None:
            self._arguments = (arguments["inputs"], requested_output_names)

        async def async_exec(self) -> InferenceResponse:
            return await model.draw(*self._arguments)

    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.TritonError = Tensor, TritonError
    utils.InferenceRequest, utils.InferenceResponse = InferenceRequest, InferenceResponse
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    yield model
    for name in ("stub", "stream_model"):  # they have it
        sys.modules.pop(f"latentry.serving.triton.{name}", None)


Answer = Callable[..., Sender]


@pytest.fixture
def answer(
    batched: Batched, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Answer:
    """Return what has the stream model of ``wide`` answer, with a queue of this limit."""
    (entry,) = newest_entries(repository, ("wide",))
    signs = tmp_path / "signs"
    (signs / HEARTBEATS).mkdir(parents=True)
    monkeypatch.setenv(SIGNS_FOLDER, str(signs))
    module = importlib.import_module("latentry.serving.triton.stream_model")
    monkeypatch.setattr(module, "exit_with_parent", lambda: None)

    def call(*, queue: int = 0, taken: int = 10**6, draining: bool = False, **more: Any) -> Sender:
        if draining:
            (signs / DRAIN_MARK).touch()
        served = with_serving(entry, {"max_queue_size": queue})
        config = text_format.Parse(stream_config_pbtxt(served), model_config_pb2.ModelConfig())
        model = module.StreamModel()
        model.initialize(
            {
                "model_name": config.name,
                "model_instance_name": f"{config.name}_{queue}",
                "model_config": MessageToJson(config, preserving_proto_field_name=True),
            }
        )
        sender = Sender(taken)
        parameters = {name: more.pop(name) for name in ("continues",) if name in more}
        tensors = {"seed": [0], "count": [20], "chunk_size": [2], **more}
        asyncio.run(model.execute([Request(sender, tensors, **parameters)]))
        return sender

    return call


@pytest.mark.parametrize(("queue", "most"), [(0, 2), (1, 1), (2, 1), (3, 2)])
def test_a_short_queue_holds_one_chunk_of_a_stream(
    answer: Answer, batched: Batched, queue: int, most: int
) -> None:
    sender = answer(queue=queue)
    assert (len(sender.sent), sender.ends, batched.most) == (10, 1, most)
    image, _ = sender.sent[0].output_tensors()
    assert (image.name(), image.as_numpy().shape) == ("image", (2, 4, 4, 3))
    places = [response.output_tensors()[-1].as_numpy().tolist() for response in sender.sent]
    assert places == [[2 * index] for index in range(10)]


def test_what_a_caller_who_left_does_not_want_is_awaited_all_the_same(
    answer: Answer, batched: Batched
) -> None:
    sender = answer(taken=3)
    assert len(sender.sent) == 3
    assert batched.asked < 10
    assert batched.under_way == 0  # it holds shared memory


def test_files_are_sent_without_an_axis_of_rows(answer: Answer) -> None:
    sender = answer(format=[b"png"])
    tensor, _ = sender.sent[0].output_tensors()
    assert (tensor.name(), tensor.as_numpy().shape) == ("image.encoded", (2,))


def test_what_is_new_is_refused_while_streams_go_on(answer: Answer, batched: Batched) -> None:
    (refused,) = answer(draining=True).sent
    assert (error := refused.error()) is not None
    assert "shutting down" in error.message()
    assert batched.asked == 0
    assert len(answer(draining=True, continues=True).sent) == 10


@pytest.mark.parametrize(
    ("draining", "text", "said"),
    [
        (False, "Exceeds maximum queue size", "Exceeds maximum queue size"),
        (True, "Server exiting", "[UNAVAILABLE] the server is shutting down"),
        (True, "[INTERNAL] NaN or infinity", "[INTERNAL] NaN or infinity"),
    ],
)
def test_an_error_of_a_chunk_ends_the_stream_once(
    answer: Answer, batched: Batched, draining: bool, text: str, said: str
) -> None:
    batched.error = TritonError(text)
    sender = answer(draining=draining, continues=draining)
    (response,) = sender.sent
    error = response.error()
    assert error is not None
    assert error.message().startswith(said)
    assert sender.ends == 1
    assert batched.under_way == 0
