"""What a spec's stages must not do."""

import pytest
from pydantic import ValidationError
from specs import image, make_spec, psi, stages_of_stylegan, w, z

PHOTO = {**image(8, 8), "name": "photo"}
MASK = {"name": "mask", "kind": "mask", "height": 8, "width": 8}
TRUNCATED = {"name": "w_truncated", "kind": "tensor", "shape": [3, 4]}
MAPPED = [z(4), w(3, 4), psi()]


def test_an_output_comes_from_a_network() -> None:
    stages = stages_of_stylegan([0.0] * 4, mapping_takes=["z"])
    make_spec(MAPPED, [image(8, 8)], stages)
    message = "operation truncate gives w_truncated; outputs must come from networks"
    with pytest.raises(ValidationError, match=message):
        make_spec(MAPPED, [image(8, 8), TRUNCATED], stages)


def test_a_stage_may_take_what_is_given_or_what_was_made_but_not_either() -> None:
    stages = [
        {"network": "painter", "takes": ["photo"], "gives": ["image"]},
        {"network": "matting", "takes": ["image"], "gives": ["mask"]},
    ]
    make_spec([PHOTO], [image(8, 8), MASK], stages)
    stages[0]["gives"], stages[1]["takes"] = ["photo"], ["photo"]
    with pytest.raises(ValidationError, match="takes photo, which is an input, an output"):
        make_spec([PHOTO], [PHOTO, MASK], stages)


def test_a_latent_that_may_be_given_or_made_is_no_output_of_that_name() -> None:
    output = {"name": "w", "kind": "tensor", "shape": [3, 4]}
    message = "takes w, which is an input, an output and made by a stage before it"
    with pytest.raises(ValidationError, match=message):
        make_spec(MAPPED, [image(8, 8), output], stages_of_stylegan([0.0] * 4, mapping_takes=["z"]))
