"""Arrays to and from Triton's inference messages; what a served model's configuration says."""

import struct
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.clients.transports.grpc_library import library
from latentry.contract.errors import NotFound, ServerFault
from latentry.contract.spec import spec_from_json
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.wire import (
    BUILD,
    BUILD_DIGEST,
    ENGINE_CLASS,
    MODEL_DIGEST,
    SPEC,
    Arrays,
)

library()  # before tritonclient imports gRPC as it comes
from tritonclient.grpc import service_pb2 as service_pb2  # noqa: E402
from tritonclient.grpc.service_pb2_grpc import (  # noqa: E402
    GRPCInferenceServiceStub as GRPCInferenceServiceStub,
)

FINAL_RESPONSE = "triton_final_response"
ASK_FINAL_RESPONSE = "triton_enable_empty_final_response"

# Triton's raw contents are little-endian on every machine.
_DTYPES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<I")


def infer_request(model: str, inputs: Arrays, parameters: Mapping[str, bool] | None = None) -> Any:
    """Return the ``ModelInferRequest`` that carries ``inputs`` to ``model``.

    Args:
        model: Name of the Triton model.
        inputs: int64, float32 or uint8 arrays, or arrays of bytes objects.
        parameters: Request parameters.
    """
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, value in (parameters or {}).items():
        request.parameters[name].bool_param = value
    for name, array in inputs.items():
        datatype = "BYTES" if array.dtype == np.object_ else _DATATYPES[array.dtype]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        raw = _bytes_from_texts(array.flat) if datatype == "BYTES" else array.tobytes()
        request.raw_input_contents.append(raw)
    return request


def reply_from_response(response: Any) -> Reply:
    """Return the reply in a ``ModelInferResponse``; numbers are views of its bytes, read-only.

    Raises:
        ServerFault: It is malformed, or holds a type that no generator answers with.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ServerFault("the server's answer lacks the contents of an output")
    outputs = {
        output.name: _array(output.name, output.datatype, tuple(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return Reply(response.model_version, outputs)


def is_final(response: Any) -> bool:
    """Whether a ``ModelInferResponse`` is the last one to its request."""
    return FINAL_RESPONSE in response.parameters and bool(
        response.parameters[FINAL_RESPONSE].bool_param
    )


def info_from_config(config: Any, versions: Iterable[str]) -> ModelInfo:
    """Return what a Triton ``ModelConfig`` says of a generator with these versions served.

    Raises:
        NotFound: The model is no Latentry generator.
        SpecError: Its spec is not understood.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    if not {SPEC, MODEL_DIGEST, BUILD, BUILD_DIGEST} <= parameters.keys():
        raise NotFound(f"{config.name} is not a Latentry generator; models() lists what is served")
    return ModelInfo(
        name=config.name,
        version=max(versions, key=int, default=""),
        model_digest=parameters[MODEL_DIGEST],
        build=parameters[BUILD],
        build_digest=parameters[BUILD_DIGEST],
        engine_class=parameters.get(ENGINE_CLASS, "unknown"),
        spec=spec_from_json(parameters[SPEC], f"the configuration of {config.name}"),
        max_batch_size=max(1, config.max_batch_size),
    )


def _array(name: str, datatype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    if datatype == "BYTES":
        elements: NDArray[Any] = _texts_from_bytes(name, raw)
    elif datatype not in _DTYPES:
        raise ServerFault(f"the server answered {name} as {datatype}; no generator does")
    elif len(raw) % _DTYPES[datatype].itemsize:
        raise ServerFault(f"the server's answer {name} ends inside a number")
    else:
        elements = np.frombuffer(raw, _DTYPES[datatype])
    if elements.size != prod(shape):
        raise ServerFault(
            f"the server answered {name} with {elements.size} elements for shape {list(shape)}"
        )
    return elements.reshape(shape)


def _bytes_from_texts(texts: Iterable[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _texts_from_bytes(name: str, raw: bytes) -> NDArray[Any]:
    texts, position = [], 0
    while position < len(raw):
        start = position + _LENGTH.size
        if start > len(raw):
            raise ServerFault(f"the server's answer {name} ends inside a length")
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > len(raw):
            raise ServerFault(f"the server's answer {name} ends inside an element")
        texts.append(raw[start:position])
    array = np.empty(len(texts), np.object_)
    array[:] = texts
    return array
