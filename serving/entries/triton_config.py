"""``config.pbtxt`` of a repository entry, generated from its manifest.

The fields are those of Triton's ``model_config.proto``.
"""

import json
from collections.abc import Mapping

from latentry.contract.spec import GeneratorSpec, Role
from latentry.contract.wire import MODEL_DIGEST, SPEC, THREADS
from latentry.serving.entries.manifest import Manifest, ServingPart

CONFIG_FILE = "config.pbtxt"
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def config_pbtxt(name: str, manifest: Manifest, parameters: Mapping[str, str] | None = None) -> str:
    """Return the ``config.pbtxt`` of model ``name``; ``parameters`` are added to the usual ones."""
    serving = manifest.serving
    return "\n".join(
        [
            "# Generated from latentry.json; changes here are lost.",
            f"name: {_text(name)}",
            'backend: "python"',
            f"max_batch_size: {serving.max_batch_size}",
            *_inputs(manifest.model.spec),
            *_outputs(manifest.model.spec),
            *_scheduling(serving),
            *_parameters(
                {
                    MODEL_DIGEST: manifest.digest,
                    SPEC: manifest.model.spec.model_dump_json(),
                    THREADS: str(serving.threads),
                    **(parameters or {}),
                }
            ),
            "",
        ]
    )


def _inputs(spec: GeneratorSpec) -> list[str]:
    # All are optional to Triton: which must be there depends on which latent a request carries,
    # and the front model's refusal says what is allowed where Triton's own would not.
    lines = [_tensor("input", "seed", "TYPE_INT64", (1,), optional=True)]
    for item in spec.inputs:
        data_type = _TYPES[item.dtype.__name__]
        lines.append(_tensor("input", item.role, data_type, item.row_shape, optional=True))
    return [*lines, _tensor("input", "format", "TYPE_STRING", (1,), optional=True)]


def _outputs(spec: GeneratorSpec) -> list[str]:
    height, width, channels = spec.image.row_shape
    return [
        _tensor("output", Role.IMAGE, "TYPE_UINT8", (height, width, channels)),
        _tensor("output", "sample", "TYPE_FP32", (channels, height, width)),
        _tensor("output", "encoded", "TYPE_STRING", (1,)),
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
    kind: str, name: str, data_type: str, dims: tuple[int, ...], *, optional: bool = False
) -> str:
    more = " optional: true" if optional else ""
    shape = ", ".join(map(str, dims))
    return f"{kind} [ {{ name: {_text(name)} data_type: {data_type} dims: [ {shape} ]{more} }} ]"


def _text(value: str) -> str:
    # A JSON string of ASCII characters is also a string of protobuf's text format.
    return json.dumps(value)
