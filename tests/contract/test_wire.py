from typing import Any

import numpy as np
import pytest
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import (
    MAX_STREAMED_SAMPLES,
    input_row_bytes,
    most_streamed_samples,
    rows_from_request,
)

IMAGE = image(8, 6)
LABEL = classes("cat", "dog")
STAGES = stages_of_stylegan([0.0, 0.1, 0.2])

PLAIN = make_spec([z(4)], [IMAGE])
CLASSES = make_spec([z(4), LABEL], [IMAGE])
FULL = make_spec([z(4), LABEL, w(2, 3), psi(default=0.7)], [IMAGE], STAGES)
NOISY = make_spec([z(4), z(2, name="noise")], [IMAGE])
GIVEN = make_spec([w(2, 3)], [IMAGE])
# A picture goes in, and one of the same name comes out; nothing is drawn.
UPSCALED = make_spec([image(2, 3), psi()], [IMAGE])

W = np.zeros((1, 2, 3), np.float32)
PIXELS = np.zeros((2, 2, 3, 3), np.uint8)


def seeds(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)[:, None]


def test_defaults_are_filled_in() -> None:
    rows = rows_from_request(FULL, {"seed": seeds(1, 2), "class_label": seeds(0, 1)}, most=4)
    assert (rows.count, rows.image_format) == (2, Format.RAW)
    assert rows.seeds is not None
    assert rows.seeds.tolist() == [1, 2]
    assert list(rows.inputs) == ["class_label", "truncation_psi"]
    assert rows.inputs["truncation_psi"].tolist() == [[np.float32(0.7)]] * 2
    assert rows.inputs["truncation_psi"].dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "given", "size"),
    [
        (PLAIN, [], 8),
        (PLAIN, ["z"], 8 + 4 * 4),
        (FULL, ["class_label", "truncation_psi"], 8 + 8 + 4),
        (FULL, ["w", "truncation_psi"], 8 + 4 * 6 + 4),
        (UPSCALED, ["image"], 8 + 2 * 3 * 3),
        (PLAIN, ["nothing"], 8),
    ],
)
def test_the_size_of_a_samples_tensors(spec: GeneratorSpec, given: list[str], size: int) -> None:
    assert input_row_bytes(spec, given) == size


def test_a_stream_request_holds_no_more_than_8_mib_of_what_is_larger() -> None:
    def most(spec: GeneratorSpec, *given: str, image_format: Format = Format.RAW) -> int:
        return most_streamed_samples(spec, given, image_format, 16)

    assert most(PLAIN) == MAX_STREAMED_SAMPLES
    large = make_spec([z(4), image(512, 512)], [image(1024, 512)])
    assert 2**23 // (1024 * 512 * 3) < most(large) == 16  # one largest batch in any case
    wide = make_spec([z(65536), LABEL], [image(64, 64, 1)])
    assert most(wide, "class_label") == 2**23 // 64**2
    assert most(wide, "z") == 2**23 // (4 * 65536 + 8)
    assert most(wide, image_format=Format.FLOAT) == 2**23 // (5 * 64**2)
    assert most(wide, image_format=Format.PNG) == 2**23 // 64**2


def test_what_is_made_all_the_same_is_not_given() -> None:
    halves = [{**w(4), "name": name} for name in ("left", "right")]
    style = {"name": "style", "kind": "vector", "size": 4}
    spec = make_spec(
        [z(4), *halves, {**w(4), "name": "w"}],
        [image(2, 2), style],
        [
            {"network": "first", "takes": ["z"], "gives": ["left", "right"]},
            {"network": "second", "takes": ["left", "right"], "gives": ["w", "style"]},
            {"network": "third", "takes": ["w"], "gives": ["image"]},
        ],
    )
    row = np.zeros((1, 4), np.float32)
    seed = np.zeros((1, 1), np.int64)
    words = (
        "left is made by a stage that runs for right all the same; leave left out, or give those"
    )
    with pytest.raises(BadRequest, match=words):
        rows_from_request(spec, {"seed": seed, "left": row}, most=1)
    words = "w is made by a stage that runs for style all the same; leave w out$"
    with pytest.raises(BadRequest, match=words):
        rows_from_request(spec, {"seed": seed, "w": row}, most=1)


def test_w_goes_around_the_class() -> None:
    rows = rows_from_request(FULL, {"w": W}, most=4)
    assert list(rows.inputs) == ["w", "truncation_psi"]
    assert rows.seeds is None
    with pytest.raises(
        BadRequest,
        match="class_label acts in a network that w goes around; leave it out, or w$",
    ):
        rows_from_request(FULL, {"w": W, "class_label": seeds(0)}, most=4)
    with pytest.raises(BadRequest, match="z acts in a network that w goes around"):
        rows_from_request(FULL, {"w": W, "z": np.zeros((1, 4), np.float32)}, most=4)


def test_a_seed_draws_the_latents_that_are_not_given() -> None:
    noise = np.ones((1, 2), np.float32)
    rows = rows_from_request(NOISY, {"seed": seeds(3), "noise": noise}, most=4)
    assert rows.seeds is not None
    assert list(rows.inputs) == ["noise"]
    with pytest.raises(BadRequest, match="seed is required, as it draws z; or give z itself"):
        rows_from_request(NOISY, {"noise": noise}, most=4)
    both = {"z": np.zeros((1, 4), np.float32), "noise": noise}
    assert rows_from_request(NOISY, both, most=4).seeds is None
    with pytest.raises(BadRequest, match="seed and noise and z were given; nothing is left for"):
        rows_from_request(NOISY, {"seed": seeds(3), **both}, most=4)


def test_a_model_without_drawn_latents_takes_no_seed() -> None:
    rows = rows_from_request(UPSCALED, {"image": PIXELS}, most=4)
    assert (rows.count, rows.seeds) == (2, None)
    assert rows.inputs["image"] is PIXELS
    with pytest.raises(BadRequest, match="takes no seed; it takes image, truncation_psi, format"):
        rows_from_request(UPSCALED, {"seed": seeds(1, 2), "image": PIXELS}, most=4)
    with pytest.raises(BadRequest, match="image is required by this model; it takes pictures of 2"):
        rows_from_request(UPSCALED, {"truncation_psi": np.ones((1, 1), np.float32)}, most=4)
    with pytest.raises(BadRequest, match="w is required by this model; it takes 2 x 3 finite"):
        rows_from_request(GIVEN, {"format": np.array([[b"png"]])}, most=4)


@pytest.mark.parametrize(
    ("spec", "request_", "match"),
    [
        (PLAIN, {}, "carries no tensors; send at least seed"),
        (
            PLAIN,
            {"format": np.array([[b"png"]])},
            "seed is required, as it draws z; or give z itself",
        ),
        (
            PLAIN,
            {"seed": seeds(1), "z": np.zeros((1, 4), np.float32)},
            "seed and z were given; nothing is left for seed to draw, so give one of them",
        ),
        (PLAIN, {"seed": seeds()}, "has 0 rows; this model takes 1 to 4"),
        (PLAIN, {"seed": seeds(*range(5))}, "has 5 rows; this model takes 1 to 4"),
        (PLAIN, {"seed": seeds(0, -1)}, "seed in row 1 is -1; a seed is an integer from 0"),
        (PLAIN, {"seed": seeds(2**32)}, "seed in row 0 is 4294967296"),
        (PLAIN, {"seed": np.zeros((1, 2), np.int64)}, r"seed has shape \[1, 2\]"),
        (PLAIN, {"seed": np.zeros((1, 1))}, "seed has dtype float64; seeds travel as int64"),
        (PLAIN, {"w": np.zeros((1, 2, 3), np.float32)}, "takes no w; it takes seed, z, format"),
        (PLAIN, {"seed": seeds(1), "class_label": seeds(0)}, "takes no class_label; it takes seed"),
        (
            PLAIN,
            {"seed": seeds(1), "truncation_psi": np.ones((1, 1), np.float32)},
            "takes no truncation_psi",
        ),
        (CLASSES, {"seed": seeds(1)}, "class_label is required by this model; .* 0=cat, 1=dog"),
        (CLASSES, {"seed": seeds(1), "class_label": seeds(2)}, "row 0 is 2"),
        (CLASSES, {"seed": seeds(1, 2), "class_label": seeds(0)}, "differ in their number of rows"),
        (
            PLAIN,
            {"seed": seeds(1, 2), "format": np.array([[b"png"], [b"raw"]])},
            "format differs inside one request",
        ),
        (PLAIN, {"seed": seeds(1), "format": np.array([[b"gif"]])}, "format 'gif' is unknown"),
        (UPSCALED, {"image": PIXELS.astype(np.int64)}, "image has dtype int64; it takes pictures"),
        (UPSCALED, {"image": PIXELS[:, :1]}, r"rows of shape \[1, 3, 3\]; it takes rows of shape"),
        (UPSCALED, {"image.sample": PIXELS}, r"takes no image\.sample; it takes image, trunc"),
        (
            PLAIN,
            {"seed": seeds(1), "format": np.array([[b"x" * 300]], object)},
            "format holds 300 bytes; it takes at most 256",
        ),
        (
            PLAIN,
            {"seed": seeds(1), "format": np.array([[b"\xff"]], object)},
            r"format holds b'\\xff', which is no UTF-8 text",
        ),
    ],
)
def test_refusals(spec: GeneratorSpec, request_: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        rows_from_request(spec, request_, most=4)


def test_an_output_that_has_no_such_format_refuses_it() -> None:
    clear = make_spec([z(4)], [image(8, 6, 4)])
    asked = {"seed": seeds(1), "format": np.array([[b"jpeg"]], np.object_)}
    with pytest.raises(BadRequest, match="jpeg knows no transparency, which image has"):
        rows_from_request(clear, asked, most=4)
    assert rows_from_request(PLAIN, asked, most=4).image_format is Format.JPEG
