"""Numbers of the serving part that Triton's configuration cannot hold are refused by us."""

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from latentry.serving.entries.manifests import ServingPart
from latentry.serving.entries.triton_config import _scheduling

NUMBERS = ["max_queue_size", "max_queue_delay_microseconds"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [2**32, 2**64, 10**30])
def test_what_triton_would_not_read_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 4294967295"):
        ServingPart.model_validate({name: value})


def test_the_largest_are_read() -> None:
    serving = ServingPart.model_validate(dict.fromkeys(NUMBERS, 2**32 - 1))
    config = model_config_pb2.ModelConfig()
    text_format.Parse("\n".join(_scheduling(serving)), config)
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 2**32 - 1
    assert batching.default_queue_policy.max_queue_size == 2**32 - 1
