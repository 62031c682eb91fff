"""``config.pbtxt`` of a repository entry, generated from what its JSON files say.

The fields are those of Triton's ``model_config.proto``.
"""

import json
from collections.abc import Mapping

import numpy as np

from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import TensorType
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import (
    BUILD,
    BUILD_DIGEST,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    MODEL_DIGEST,
    SPEC,
    STREAM_OF,
    STREAM_SUFFIX,
    THREADS,
)
from latentry.serving.entries.manifests import ServingPart
from latentry.serving.entries.repository import Entry

CONFIG_FILE = "config.pbtxt"
_TYPES = {
    "float32": "TYPE_FP32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "object": "TYPE_STRING",
}


def config_pbtxt(entry: Entry, parameters: Mapping[str, str] | None = None) -> str:
    """Return the ``config.pbtxt`` of ``entry``; ``parameters`` are added to the usual ones."""
    serving, spec = entry.build.serving, entry.spec
    return "\n".join(
        [
            "# Generated from model.json and build.json; changes here are lost.",
            f"name: {_text(entry.name)}",
            'backend: "python"',
            f"max_batch_size: {serving.max_batch_size}",
            *_inputs(spec),
            *(
                _tensor("output", output, kind.dtype, kind.row_shape)
                for output, kind in output_tensors(spec).items()
            ),
            *_scheduling(serving),
            *_parameters(
                {
                    MODEL_DIGEST: entry.digest,
                    BUILD: entry.build.name,
                    BUILD_DIGEST: entry.build.digest,
                    SPEC: _json(spec),
                    THREADS: str(serving.threads),
                    **(parameters or {}),
                }
            ),
            "",
        ]
    )


def stream_config_pbtxt(entry: Entry) -> str:
    """Return the ``config.pbtxt`` of the stream model of ``entry``; it has no batch axis."""
    serving, spec = entry.build.serving, entry.spec
    inputs: list[tuple[str, type[np.generic], tuple[int, ...]]] = [
        ("count", np.int64, (1,)),
        ("chunk_size", np.int64, (1,)),
        ("format", np.object_, (1,)),
    ]
    if spec.takes_seed:
        inputs.insert(0, ("seed", np.int64, (-1,)))
    return "\n".join(
        [
            "# Generated from model.json and build.json; changes here are lost.",
            f"name: {_text(entry.name + STREAM_SUFFIX)}",
            'backend: "python"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            *(_tensor("input", *tensor, optional=True) for tensor in inputs),
            *(
                _tensor("input", item.name, item.dtype, (-1, *item.row_shape), optional=True)
                for item in spec.inputs
            ),
            *(
                _tensor("output", output, kind.dtype, stream_shape(kind))
                for output, kind in output_tensors(spec).items()
            ),
            _tensor("output", "index", np.int64, (1,)),
            "instance_group [ { count: 1 kind: KIND_CPU } ]",
            *_parameters(
                {
                    STREAM_OF: entry.name,
                    SPEC: _json(spec),
                    MAX_BATCH_SIZE: str(serving.max_batch_size),
                    MAX_QUEUE_SIZE: str(serving.max_queue_size),
                }
            ),
            "",
        ]
    )


def output_tensors(spec: GeneratorSpec) -> dict[str, TensorType]:
    """Return every tensor by which an output may travel, by name."""
    formats = (Format.FLOAT, Format.PNG)
    return {
        name: kind
        for item in spec.outputs
        for image_format in formats
        for name, kind in item.tensors(image_format).items()
    }


def stream_shape(kind: TensorType) -> tuple[int, ...]:
    """Return the shape of a chunk: one row a sample, and files as a flat list."""
    return (-1,) if kind.dtype is np.object_ else (-1, *kind.row_shape)


def _inputs(spec: GeneratorSpec) -> list[str]:
    # All are optional to Triton: which must be there depends on which latents a request carries,
    # and the front model's refusal says what is allowed where Triton's own would not.
    seed = [_tensor("input", "seed", np.int64, (1,), optional=True)] if spec.takes_seed else []
    return [
        *seed,
        *(
            _tensor(
                *("input", item.name, item.dtype, item.row_shape),
                optional=True,
                ragged=item in spec.free_inputs,
            )
            for item in spec.inputs
        ),
        _tensor("input", "format", np.object_, (1,), optional=True),
    ]


def _scheduling(serving: ServingPart) -> list[str]:
    # Only where asked for: a limit keeps Triton from preparing batches ahead (docs/design.md).
    limit = f"  default_queue_policy {{ max_queue_size: {serving.max_queue_size} }}"
    return [
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {serving.max_queue_delay_microseconds}",
        *([limit] if serving.max_queue_size else []),
        "}",
        f"instance_group [ {{ count: {serving.instances} kind: KIND_CPU }} ]",
    ]


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in parameters.items()
    ]


def _tensor(
    direction: str,
    name: str,
    dtype: type[np.generic],
    dims: tuple[int, ...],
    *,
    optional: bool = False,
    ragged: bool = False,
) -> str:
    more = " optional: true" if optional else ""
    # Requests of different sizes share a batch; the model itself puts equal ones together.
    more += " allow_ragged_batch: true" if ragged else ""
    shape = ", ".join(map(str, dims))
    data_type = _TYPES[np.dtype(dtype).name]
    return (
        f"{direction} [ {{ name: {_text(name)} data_type: {data_type} dims: [ {shape} ]{more} }} ]"
    )


def _json(spec: GeneratorSpec) -> str:
    # Of ASCII characters: the configuration's own escapes know no pairs of surrogates.
    return json.dumps(spec.model_dump(mode="json"))


def _text(value: str) -> str:
    # A JSON string of ASCII characters is also a string of protobuf's text format.
    return json.dumps(value)
