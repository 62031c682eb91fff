import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from specs import classes, image, make_spec, z
from stored.changed_entries import with_spec
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.manifests import ServingPart
from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.entries.triton_config import config_pbtxt, stream_config_pbtxt

MANY = make_spec(
    [
        z(4, 8, 8),
        classes("a", "b"),
        {"name": "photo", "kind": "picture", "height": 6, "width": 5, "channels": 3},
        {"name": "alpha", "kind": "mask", "height": 6, "width": 5},
    ],
    [
        image(8, 9, 4),
        {"name": "alpha", "kind": "mask", "height": 6, "width": 5},
        {"name": "features", "kind": "vector", "size": 7},
    ],
)
NO_SEED = make_spec(
    [{"name": "photo", "kind": "picture", "height": 6, "width": 5, "channels": 3}],
    [{"name": "features", "kind": "vector", "size": 7}],
)


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture
def entry(repository: Path) -> Entry:
    return newest_entries(repository, ("wide",))[0]


def tensors(fields: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Return element type and shape of the tensors of a configuration."""
    name_of = model_config_pb2.DataType.Name
    found = {}
    for item in fields:
        text = name_of(item.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        found[item.name] = (triton_to_np_dtype(text), tuple(item.dims))
    return found


@pytest.mark.parametrize("name", ["digits", "mapped", "wide"])
def test_the_generated_config_says_what_the_manifest_says(repository: Path, name: str) -> None:
    (entry,) = newest_entries(repository, (name,))
    config = parsed(config_pbtxt(entry))
    spec = entry.spec
    assert config.name == name
    assert config.max_batch_size == entry.build.serving.max_batch_size
    assert config.instance_group[0].count == entry.build.serving.instances
    dims = {tensor.name: tuple(tensor.dims) for tensor in config.input}
    assert dims == {
        "seed": (1,),
        **{item.name: item.row_shape for item in spec.inputs},
        "format": (1,),
    }
    assert all(tensor.optional for tensor in config.input)
    assert tuple(config.output[0].dims) == spec.image.row_shape
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["latentry.model_digest"] == entry.digest
    served = GeneratorSpec.model_validate(json.loads(parameters["latentry.spec"]))
    assert served == spec


@pytest.mark.parametrize("spec", [MANY, NO_SEED])
def test_every_tensor_is_declared_as_its_kind_has_it(entry: Entry, spec: GeneratorSpec) -> None:
    config = parsed(config_pbtxt(with_spec(entry, spec)))
    text = (np.object_, (1,))
    assert tensors(config.input) == {
        **({"seed": (np.int64, (1,))} if spec.takes_seed else {}),
        **{item.name: (item.dtype, item.row_shape) for item in spec.inputs},
        "format": text,
    }
    assert all(tensor.optional for tensor in config.input)
    expected = {
        name: (kind.dtype, kind.row_shape)
        for item in spec.outputs
        for image_format in Format
        for name, kind in item.tensors(image_format).items()
    }
    assert tensors(config.output) == expected


@pytest.mark.parametrize("spec", [MANY, NO_SEED])
def test_a_stream_model_takes_and_gives_the_same_without_a_batch_axis(
    entry: Entry, spec: GeneratorSpec
) -> None:
    serving = ServingPart(max_batch_size=24, max_queue_size=7)
    served = with_spec(entry, spec)
    served = replace(served, build=served.build.model_copy(update={"serving": serving}))
    unary, config = parsed(config_pbtxt(served)), parsed(stream_config_pbtxt(served))
    assert config.name == "wide.stream"
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled
    assert config.instance_group[0].count == 1
    one = (np.int64, (1,))
    assert tensors(config.input) == {
        **({"seed": (np.int64, (-1,))} if spec.takes_seed else {}),
        **{item.name: (item.dtype, (-1, *item.row_shape)) for item in spec.inputs},
        "count": one,
        "chunk_size": one,
        "format": (np.object_, (1,)),
    }
    assert all(tensor.optional for tensor in config.input)
    rows = {
        name: (dtype, (-1,) if dtype is np.object_ else (-1, *dims))
        for name, (dtype, dims) in tensors(unary.output).items()
    }
    assert tensors(config.output) == {**rows, "index": one}
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert GeneratorSpec.model_validate_json(parameters.pop("latentry.spec")) == spec
    assert parameters == {
        "latentry.stream_of": "wide",
        "latentry.max_batch_size": "24",
        "latentry.max_queue_size": "7",
    }


def test_texts_of_a_spec_stay_texts(entry: Entry) -> None:
    spec = make_spec([z(4), classes('"} ]', "\n\\", "日本 \x7f\U0001f600")], [image(2, 2)])
    for text in (
        config_pbtxt(with_spec(entry, spec)),
        stream_config_pbtxt(with_spec(entry, spec)),
    ):
        config = parsed(text)
        assert len(config.input) >= 4
        text = config.parameters["latentry.spec"].string_value
        assert GeneratorSpec.model_validate_json(text) == spec
