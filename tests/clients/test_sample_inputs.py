"""What the inputs of a call become, however they are given and whether or not there are seeds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from doubles import InfoOf, asked
from numpy.typing import NDArray
from specs import image, make_spec, z

from latentry.clients import BadRequest, ModelInfo
from latentry.clients.samples import stream_requests, unary_requests
from latentry.serving.runtime.streaming import stream_from_request

Z = np.zeros((3, 4), np.float32)


def given_of(model: ModelInfo, **arguments: Any) -> dict[str, NDArray[Any]]:
    return dict(asked(model, **arguments).rows.inputs)


@pytest.mark.parametrize(
    "latent", [[1, 2, 3, 4], (1, 2, 3, 4.0), np.arange(1, 5), iter(range(1, 5))]
)
def test_one_latent_may_be_given_without_an_axis_of_samples(info: InfoOf, latent: Any) -> None:
    given = given_of(info("plain"), z=latent)
    assert given["z"].tolist() == [[1, 2, 3, 4]]
    noisy = replace(info("plain"), spec=make_spec([z(4), z(2, name="noise")], [image(6, 5)]))
    both = given_of(noisy, z=Z, noise=[7, 8])
    assert (both["z"].shape, both["noise"].tolist()) == ((3, 4), [[7, 8]] * 3)


def test_lists_are_read_whole_whatever_the_number_of_samples(info: InfoOf) -> None:
    rows = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    of = replace(info("plain"), spec=make_spec([z(4), z(3, 4, name="noise")], [image(6, 5)]))
    for noise in (rows[0].tolist(), rows[:1].tolist(), list(rows[0]), iter(rows[0].tolist())):
        assert given_of(of, seeds=1, noise=noise)["noise"].tolist() == rows[:1].tolist()
    assert given_of(of, seeds=[1, 2], noise=rows.tolist())["noise"].tolist() == rows.tolist()


def test_names_of_classes(info: InfoOf) -> None:
    def classes_of(**arguments: Any) -> list[list[int]]:
        labels: list[list[int]] = given_of(info("digits"), **arguments)["class_label"].tolist()
        return labels

    assert classes_of(seeds=[1, 2], class_label="two") == [[2], [2]]
    for named in (["two", "zero"], ("two", 0), np.array(["two", "zero"]), iter(["two", "zero"])):
        assert classes_of(seeds=[1, 2], class_label=named) == [[2], [0]]
    with pytest.raises(
        BadRequest, match="class_label has no class 'three'; it takes an integer fr"
    ):
        classes_of(seeds=[1, 2], class_label=["two", "three"])


def upscaler(info: InfoOf) -> ModelInfo:
    """Return a model that takes a picture and a strength, and no seed."""
    strength = {"name": "strength", "kind": "number", "minimum": 0, "maximum": 1, "default": 0.5}
    return replace(info("plain"), spec=make_spec([image(2, 3), strength], [image(6, 5)]))


def test_without_seeds_the_rows_say_how_many_samples_there_are(info: InfoOf) -> None:
    of, pixels = upscaler(info), np.arange(54, dtype=np.uint8).reshape(3, 2, 3, 3)
    one = asked(of, image=pixels[0]).rows
    assert (one.count, one.seeds) == (1, None)
    several = asked(of, image=pixels).rows
    assert several.count == 3
    np.testing.assert_array_equal(several.inputs["image"], pixels)
    assert several.inputs["strength"].tolist() == [[0.5]] * 3
    swept = asked(of, image=pixels[0], strength=[0, 0.25, 0.5, 1]).rows
    assert swept.count == 4
    np.testing.assert_array_equal(swept.inputs["image"], pixels[[0, 0, 0, 0]])
    for words, refused in (
        (r"inputs differ .* {'image': 3, 'strength': 2}", {"image": pixels, "strength": [0, 1]}),
        ("image is required by this model; it takes pictures of 2 x 3 x 3", {"strength": [0, 1]}),
        ("this model takes no seeds; it takes image, strength, format", {"seeds": 1}),
        ("this model takes no n; it takes image, strength, format", {"n": 1, "image": pixels}),
        ("nothing was given; this model takes image, strength, format", {}),
        (r"nothing was given", {"image": None}),
    ):
        with pytest.raises(BadRequest, match=words):
            asked(of, **refused)


def test_pictures_travel_whole_in_every_request(info: InfoOf) -> None:
    of, pixels = upscaler(info), np.arange(180, dtype=np.uint8).reshape(10, 2, 3, 3)
    samples = asked(of, image=pixels)
    assert [list(request) for request in unary_requests(samples)] == [["image", "strength"]] * 2
    sent = np.concatenate([request["image"] for request in unary_requests(samples)])
    np.testing.assert_array_equal(sent, pixels)
    same = asked(of, image=pixels[0], strength=[0.5] * 10)
    for checked in (samples, same):
        (request,) = stream_requests(checked, start=2)
        # Without a seed nothing else says how many samples there are.
        assert {name: len(rows) for name, rows in request.items()} == {"image": 8, "strength": 8}
        stream = stream_from_request(of.spec, request, max_batch_size=of.max_batch_size)
        np.testing.assert_array_equal(stream.tensors["image"], checked.rows.inputs["image"][2:])


def test_a_picture_for_all_travels_once_beside_seeds(info: InfoOf) -> None:
    of = replace(info("plain"), spec=make_spec([z(4), image(2, 3)], [image(6, 5)]))
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    (request,) = stream_requests(asked(of, seeds=[5, 3, 9], image=pixels))
    assert (request["seed"].tolist(), len(request["image"])) == ([5, 3, 9], 1)
    stream = stream_from_request(of.spec, request, max_batch_size=of.max_batch_size)
    np.testing.assert_array_equal(stream.tensors["image"], pixels[None].repeat(3, axis=0))
