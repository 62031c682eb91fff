"""A generator made of arithmetic, behind a transport in this process and behind a gRPC server."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z
from tritonclient.grpc import service_pb2, service_pb2_grpc

from latentry.clients import ModelInfo, NotFound, Reply
from latentry.contract.errors import LatentryError
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import OutputKind
from latentry.contract.kinds.label_map import LabelMapOutput
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.wire import Arrays, rows_from_request
from latentry.serving.runtime.streaming import stream_from_request

Z_DIM = 4
SPECS = {
    "plain": make_spec([z(Z_DIM)], [image(6, 5)]),
    "digits": make_spec([z(Z_DIM), classes("zero", "one", "two")], [image(6, 5)]),
    "mapped": make_spec(
        [z(Z_DIM), w(2, 3), psi()],
        [image(6, 5, 1)],
        stages_of_stylegan([0.0, 0.0, 0.0], mapping_takes=["z"]),
    ),
}
STREAMS = [f"{name}.stream" for name in SPECS]
STRENGTH = {"name": "strength", "kind": "number", "minimum": 0, "maximum": 1, "default": 0.5}
EMBEDDING = {"name": "embedding", "kind": "vector", "size": 3}
# Served only where a test puts them there.
OTHERS = {
    "scene": make_spec(
        [z(Z_DIM)],
        [
            EMBEDDING,
            image(6, 5),
            {"name": "shade", "kind": "picture", "height": 4, "width": 3, "channels": 1},
            {"name": "alpha", "kind": "mask", "height": 6, "width": 5},
            {"name": "parts", "kind": "label_map", "height": 6, "width": 5, "labels": 7},
        ],
    ),
    "upscaler": make_spec([image(3, 2), STRENGTH, {**STRENGTH, "name": "v"}], [image(6, 5)]),
    "judge": make_spec([image(3, 2)], [EMBEDDING]),
}


def info_of(name: str, version: str = "1", max_batch_size: int = 8) -> ModelInfo:
    return ModelInfo(
        name=name,
        version=version,
        model_digest=f"digest-{version}",
        build="numpy-fp32",
        build_digest=f"build-{version}",
        engine_class="numpy-1",
        spec={**SPECS, **OTHERS}[name],
        max_batch_size=max_batch_size,
    )


def draw(info: ModelInfo, request: Arrays) -> dict[str, NDArray[Any]]:
    """Draw as a server does: an image is a function of its row alone."""
    rows = rows_from_request(info.spec, request, most=info.max_batch_size)
    numbers = np.zeros(rows.count) if rows.seeds is None else rows.seeds * 7.0
    for name, values in rows.inputs.items():
        is_latent = info.spec.input_of(name, LatentInput)
        numbers = numbers + values.reshape(rows.count, -1).sum(axis=1) * (7 if is_latent else 50)
    outputs: dict[str, NDArray[Any]] = {}
    for item in info.spec.outputs:
        outputs |= _draw_output(item, numbers, rows.image_format)
    return outputs


def _draw_output(
    item: OutputKind, numbers: NDArray[Any], image_format: Format
) -> dict[str, NDArray[Any]]:
    dtype, shape = item.raw.dtype, item.raw.row_shape
    levels = item.labels if isinstance(item, LabelMapOutput) else 256
    elements = (numbers[:, None] + np.arange(np.prod(shape))) % levels
    raw = elements.astype(dtype).reshape(len(numbers), *shape)
    found = {}
    for name, kind in item.tensors(image_format).items():
        if name.endswith(".encoded"):
            files = [item.encode(row, image_format) for row in raw]
            found[name] = np.array(files, np.object_)[:, None]
        elif name.endswith(".sample"):
            like = raw.transpose(0, 3, 1, 2) if raw.ndim == 4 else raw[:, None]
            found[name] = np.broadcast_to(like, (len(raw), *kind.row_shape)).astype(np.float32)
        else:
            found[name] = raw
    return found


class FakeTransport:
    """Implements the transport protocol; what goes wrong, and how slowly, is said beforehand."""

    def __init__(self) -> None:
        self.infos = {name: info_of(name) for name in SPECS}
        self.faults: list[LatentryError | None] = []  # of the next unary requests
        self.question_faults: list[LatentryError] = []
        self.old_infos: list[ModelInfo] = []  # what is said of models first, whatever is so
        self.stream_faults: list[tuple[int, LatentryError]] = []  # (after so many chunks, error)
        self.requests: list[dict[str, NDArray[Any]]] = []
        # What becomes of a stream's replies on their way.
        self.alter: Callable[[Iterator[Reply]], Iterator[Reply]] = iter
        self.stream_log: list[str] = []
        self.delays_s: list[float] = []
        self.holds = False  # whether answers are held back, here:
        self.held: list[Callable[[], None]] = []
        self.is_ready = True
        self.closed = False

    def ready(self) -> bool:
        return self.is_ready

    def model_names(self) -> list[str]:
        self._fail()
        return sorted(self.infos)

    def model_info(self, model: str) -> ModelInfo:
        self._fail()
        if model not in self.infos:
            raise NotFound(f"model {model!r} is not being served")
        return self.old_infos.pop(0) if self.old_infos else self.infos[model]

    def infer(self, model: str, inputs: Arrays) -> "Future[Reply]":
        self.requests.append(dict(inputs))
        future: Future[Reply] = Future()
        fault = self.faults.pop(0) if self.faults else None
        delay_s = self.delays_s.pop(0) if self.delays_s else 0.0

        def answer() -> None:
            if fault is not None:
                future.set_exception(fault)
                return
            try:
                outputs = draw(self.infos[model], inputs)
            except LatentryError as error:
                future.set_exception(error)
            else:
                future.set_result(Reply(self.infos[model].version, outputs))

        if self.holds:
            self.held.append(answer)
        elif delay_s:
            threading.Timer(delay_s, answer).start()
        else:
            answer()
        return future

    def stream(self, model: str, requests: Iterator[Arrays]) -> Iterator[Reply]:
        return self.alter(self._replies(model, requests))

    def _replies(self, model: str, requests: Iterator[Arrays]) -> Iterator[Reply]:
        sent = 0
        try:
            for request in requests:
                self.stream_log.append("request")
                info = self.infos[model]
                most = info.max_batch_size
                stream = stream_from_request(info.spec, request, max_batch_size=most)
                chunks = stream.chunks(most)
                for index, tensors in chunks:
                    if self.stream_faults and sent == self.stream_faults[0][0]:
                        raise self.stream_faults.pop(0)[1]
                    outputs = draw(info, tensors)
                    for name in [name for name in outputs if name.endswith(".encoded")]:
                        outputs[name] = outputs[name].reshape(-1)
                    sent += 1
                    yield Reply("1", {**outputs, "index": np.array([index], np.int64)})
        finally:
            self.stream_log.append("closed")

    def let_go(self) -> None:
        """Give the answers that are held, and all that follow."""
        answers, self.held, self.holds = self.held, [], False
        for answer in answers:
            answer()

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.question_faults:
            raise self.question_faults.pop(0)


_DTYPES = {"INT64": np.int64, "FP32": np.float32, "UINT8": np.uint8}
_NAMES = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32", np.dtype(np.uint8): "UINT8"}


class TritonDouble(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """Answers Triton's gRPC calls with the fake generators."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.metadata: list[dict[str, str]] = []
        self.deadlines: list[float | None] = []
        self.calls: list[str] = []
        self.still_wanted: list[bool] = []  # for each unary request, when it is answered
        self.abort: tuple[grpc.StatusCode, str] | None = None
        self.stream_error: str | None = None  # instead of the answer to a stream's request
        # How a stream ends after its first answer, which then is the last to its request.
        self.end_stream: Callable[[grpc.ServicerContext], None] | None = None
        self.answers_malformed = False
        self.continues: list[bool] = []  # of each request on a stream
        self.hold = threading.Event()
        self.hold.set()
        self.hold_questions = threading.Event()
        self.hold_questions.set()
        self.hold_streams = threading.Event()
        self.hold_streams.set()
        self.stream_ended = threading.Event()

    def _enter(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls.append(name)
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        if name != "infer":
            self.hold_questions.wait()
        if self.abort is not None:
            context.abort(*self.abort)

    def ServerReady(self, request: Any, context: Any) -> Any:
        self._enter("ready", context)
        return service_pb2.ServerReadyResponse(ready=self.transport.is_ready)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        self._enter("index", context)
        response = service_pb2.RepositoryIndexResponse()
        for name in (*self.transport.infos, *STREAMS):
            response.models.add(name=name, version="1", state="READY")
        response.models.add(name="broken", version="1", state="UNAVAILABLE")
        return response

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._enter("metadata", context)
        versions = [self.transport.infos[request.name].version] if self._known(request) else ["1"]
        return service_pb2.ModelMetadataResponse(name=request.name, versions=versions)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._enter("config", context)
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        if request.name == "resnet":
            return response
        if not self._known(request):
            text = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        info = self.transport.infos[request.name]
        response.config.max_batch_size = info.max_batch_size
        parameters = {
            "latentry.model_digest": info.model_digest,
            "latentry.build": info.build,
            "latentry.build_digest": info.build_digest,
            "latentry.spec": info.spec.model_dump_json(),
            "latentry.engine_class": info.engine_class,
        }
        for key, value in parameters.items():
            response.config.parameters[key].string_value = value
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._enter("infer", context)
        self.hold.wait()
        self.still_wanted.append(context.is_active())
        try:
            info = self.transport.infos[request.model_name]
            response = _response(request, info.version, draw(info, _arrays(request)))
            if self.answers_malformed:
                response.raw_output_contents.pop()
            return response
        except LatentryError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"[request id: x] {error}")

    def ModelStreamInfer(self, request_iterator: Any, context: Any) -> Any:
        self._enter("stream", context)
        context.add_callback(self.stream_ended.set)
        for request in request_iterator:
            wants_mark = request.parameters["triton_enable_empty_final_response"].bool_param
            self.hold_streams.wait()
            self.continues.append(request.parameters["continues"].bool_param)
            if self.stream_error is not None:
                yield service_pb2.ModelStreamInferResponse(error_message=self.stream_error)
                continue
            if not _arrays(request).keys() - {"count"}:
                error = "[INVALID_ARGUMENT] count goes with seed"
                yield service_pb2.ModelStreamInferResponse(error_message=error)
                continue
            model = request.model_name.removesuffix(".stream")
            for reply in self.transport.stream(model, iter([_arrays(request)])):
                self.hold.wait()
                response = _response(request, "1", reply.outputs)
                response.parameters["triton_final_response"].bool_param = bool(self.end_stream)
                yield service_pb2.ModelStreamInferResponse(infer_response=response)
                if self.end_stream is not None:
                    self.end_stream(context)
                    return
            final = _response(request, "1", {})
            final.parameters["triton_final_response"].bool_param = True
            if wants_mark:
                yield service_pb2.ModelStreamInferResponse(infer_response=final)

    def _known(self, request: Any) -> bool:
        return request.name in self.transport.infos


def _arrays(request: Any) -> dict[str, NDArray[Any]]:
    arrays = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            texts, rest = [], raw
            while rest:
                length = int.from_bytes(rest[:4], "little")
                texts.append(rest[4 : 4 + length])
                rest = rest[4 + length :]
            array = np.array(texts, np.object_)
        else:
            array = np.frombuffer(raw, _DTYPES[tensor.datatype])
        arrays[tensor.name] = array.reshape(tensor.shape)
    return arrays


def _response(request: Any, version: str, outputs: Arrays) -> Any:
    response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=version)
    for name, array in outputs.items():
        datatype = _NAMES.get(array.dtype, "BYTES")
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if datatype == "BYTES":
            parts = [len(text).to_bytes(4, "little") + text for text in array.flat]
            response.raw_output_contents.append(b"".join(parts))
        else:
            response.raw_output_contents.append(array.tobytes())
    return response


class ArithmeticServer:
    """A gRPC server on loopback; ``stop`` is as sudden as a kill."""

    def __init__(self, port: int = 0) -> None:
        self.double = TritonDouble()
        self._pool = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.double, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait(timeout=10)
        self.double.hold.set()
        self.double.hold_questions.set()
        self.double.hold_streams.set()
        self._pool.shutdown()
