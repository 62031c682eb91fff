import json
from pathlib import Path

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.repository import newest_entries
from latentry.serving.entries.triton_config import config_pbtxt

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["digits", "mapped", "wide"])
def test_the_generated_config_says_what_the_manifest_says(repository: Path, name: str) -> None:
    (entry,) = newest_entries(repository, (name,))
    config = text_format.Parse(config_pbtxt(name, entry.manifest), model_config_pb2.ModelConfig())
    spec = entry.manifest.model.spec
    assert config.name == name
    assert config.max_batch_size == entry.manifest.serving.max_batch_size
    assert config.instance_group[0].count == entry.manifest.serving.instances
    dims = {tensor.name: tuple(tensor.dims) for tensor in config.input}
    assert dims == {
        "seed": (1,),
        **{str(item.role): item.row_shape for item in spec.inputs},
        "format": (1,),
    }
    assert all(tensor.optional for tensor in config.input)
    assert tuple(config.output[0].dims) == spec.image.row_shape
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["latentry.model_digest"] == entry.manifest.digest
    served = GeneratorSpec.model_validate(json.loads(parameters["latentry.spec"]))
    assert served == spec


def test_the_stream_models_config_takes_every_role() -> None:
    text = (ROOT / "model_repository" / "generate_stream" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.model_transaction_policy.decoupled
    names = {tensor.name for tensor in config.input}
    assert {"z", "w", "class_label", "truncation_psi", "seed", "count", "model"} <= names
