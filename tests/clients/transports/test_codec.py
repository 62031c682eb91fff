from typing import Any

import numpy as np
import pytest
from doubles import InfoOf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from latentry.clients import NotFound, ServerFault, SpecError
from latentry.clients.transports import codec
from latentry.contract.wire import Arrays

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)
ARRAYS = st.one_of(
    hnp.arrays(np.int64, SHAPES),
    hnp.arrays(np.float32, SHAPES),
    hnp.arrays(np.uint8, SHAPES),
    st.lists(st.binary(max_size=20), max_size=6).map(lambda texts: texts_array(texts)),
)


def texts_array(texts: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(texts), np.object_)
    array[:] = texts
    return array


def echoed(request: Any) -> Any:
    """Return the response that sends a request's tensors back."""
    response = service_pb2.ModelInferResponse(model_name="m", model_version="3")
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return response


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), ARRAYS))
def test_arrays_survive_the_wire(inputs: Arrays) -> None:
    message = codec.infer_request("m", inputs).SerializeToString()
    request = service_pb2.ModelInferRequest.FromString(message)
    reply = codec.reply_from_response(echoed(request))
    assert reply.version == "3"
    assert list(reply.outputs) == list(inputs)
    for name, array in inputs.items():
        assert reply.outputs[name].dtype == array.dtype
        assert reply.outputs[name].shape == array.shape
        assert reply.outputs[name].tobytes() == array.tobytes() or array.dtype == np.object_
        if array.dtype == np.object_:
            assert reply.outputs[name].tolist() == array.tolist()


def test_numbers_are_views_of_the_message() -> None:
    request = codec.infer_request("m", {"a": np.arange(6).reshape(2, 3)})
    array = codec.reply_from_response(echoed(request)).outputs["a"]
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP16", [1], b"00", "as FP16"),
        ("INT64", [1], b"1234567", "ends inside a number"),
        ("INT64", [2], b"12345678", r"1 elements for shape \[2\]"),
        ("BYTES", [1], b"\1\0\0", "ends inside a length"),
        ("BYTES", [1], b"\5\0\0\0abc", "ends inside an element"),
        ("BYTES", [2], b"\1\0\0\0a", "1 elements"),
    ],
)
def test_malformed_answers_are_the_servers_fault(
    datatype: str, shape: list[int], raw: bytes, words: str
) -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="image", datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)
    with pytest.raises(ServerFault, match=words):
        codec.reply_from_response(response)


def test_an_answer_without_contents_is_the_servers_fault() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="image", datatype="UINT8", shape=[1])
    with pytest.raises(ServerFault, match="lacks the contents"):
        codec.reply_from_response(response)


def config_with(**parameters: str) -> Any:
    config = model_config_pb2.ModelConfig(name="digits", max_batch_size=32)
    for key, value in parameters.items():
        config.parameters[f"latentry.{key}"].string_value = value
    return config


def test_info_comes_from_the_configuration(info: InfoOf) -> None:
    spec = info("digits").spec
    config = config_with(
        spec=spec.model_dump_json(),
        model_digest="abc",
        build="ort-fp32",
        build_digest="def",
        engine_class="ort-avx2",
    )
    found = codec.info_from_config(config, ["9", "10"])
    assert found.spec == spec
    assert (found.name, found.version, found.max_batch_size) == ("digits", "10", 32)
    assert (found.build, found.identity) == ("ort-fp32", ("abc", "def", "ort-avx2"))


SERVED = {"spec": "{}", "model_digest": "abc", "build": "ort-fp32", "build_digest": "def"}


@pytest.mark.parametrize("missing", SERVED)
def test_other_models_are_no_generators(missing: str) -> None:
    parameters = {key: value for key, value in SERVED.items() if key != missing}
    with pytest.raises(NotFound, match="digits is not a Latentry generator"):
        codec.info_from_config(config_with(**parameters), ["1"])


def test_a_spec_of_another_age_is_refused() -> None:
    with pytest.raises(SpecError, match="the configuration of digits is no generator spec"):
        codec.info_from_config(config_with(**{**SERVED, "spec": '{"new": 1}'}), ["1"])
