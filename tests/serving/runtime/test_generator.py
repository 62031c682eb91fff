from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from specs import classes, image, make_spec, z

from latentry.contract.errors import BadRequest, InvalidOutput, ServerFault
from latentry.contract.images import decode_image, uint8_from_sample
from latentry.contract.kinds.formats import Format
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.serving.runtime.generator import Generator
from latentry.serving.runtime.stage_runner import StageRunner

SPEC = make_spec([z(4), classes("a", "b")], [image(2, 2, 1)])
NAN_SEED = 13

Arrays = dict[str, NDArray[Any]]


def draw(*seeds: int) -> NDArray[np.float32]:
    item = SPEC.find("z")
    return LatentDrawer(item).draw(seeds)  # type: ignore[arg-type]


class Arithmetic:
    """An engine that returns tanh(z) + class as its picture, and NaN for one seed."""

    engine_class = "arithmetic"

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        z = inputs["z"]
        sample = (np.tanh(z) * 0.5 + inputs["class_label"] * 0.1).astype(np.float32)
        sample[(z == draw(NAN_SEED)[0]).all(axis=1), 0] = np.nan
        sample = sample.reshape(-1, 1, 2, 2)
        made = {
            "image.sample": sample,
            "image": uint8_from_sample(np.nan_to_num(sample)),
            "watch": sample.sum(axis=(1, 2, 3)),
        }
        return {name: made[name] for name in outputs}


def make() -> Generator:
    return Generator(SPEC, {"generator": Arithmetic()}, max_batch_size=16)


def ask(*seeds: int, label: int = 0, **more: Any) -> dict[str, Any]:
    column = np.array(seeds, np.int64)[:, None]
    return {"seed": column, "class_label": np.full_like(column, label), **more}


def text(value: str, rows: int = 1) -> NDArray[Any]:
    return np.full((rows, 1), value.encode(), object)


def tensors(answer: Any) -> Arrays:
    assert isinstance(answer, dict), answer
    return answer


def picture(answer: Any) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = tensors(answer)["image"]
    return found


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_request_gets_the_same_alone_and_in_any_company(batches: list[list[int]]) -> None:
    batches = [[seed + (seed == NAN_SEED) for seed in seeds] for seeds in batches]
    together = make().answer([ask(*seeds) for seeds in batches])
    for seeds, answer in zip(batches, together, strict=True):
        for seed, row in zip(seeds, picture(answer), strict=True):
            np.testing.assert_array_equal(row, picture(make().answer([ask(seed)])[0])[0])


def test_a_bad_request_fails_alone() -> None:
    answers = make().answer([ask(1), ask(2, label=5), ask(3)])
    assert isinstance(answers[1], BadRequest)
    assert "class_label in row 0 is 5" in str(answers[1])
    np.testing.assert_array_equal(picture(answers[2]), picture(make().answer([ask(3)])[0]))


def test_nan_fails_its_own_request_and_is_counted() -> None:
    generator = make()
    answers = generator.answer([ask(12), ask(11, 13), ask(14)])
    assert isinstance(answers[1], InvalidOutput)
    assert answers[1].seeds == (13,)
    assert str(answers[1]) == "NaN or infinity in the output for seeds [13]"
    assert picture(answers[0]).shape == picture(answers[2]).shape == (1, 2, 2, 1)
    assert (generator.tally.samples, generator.tally.invalid_outputs) == (2, 1)


def test_a_warm_up_counts_for_nothing() -> None:
    generator = make()
    generator.warm_up()
    assert (generator.tally.samples, set(generator.tally.seconds.values())) == (0, {0.0})
    generator.answer([ask(1, 2)])
    assert generator.tally.samples == 2
    assert generator.tally.seconds["engine"] > 0


def test_nan_for_a_latent_names_the_row() -> None:
    (answer,) = make().answer([{"z": draw(5, NAN_SEED), "class_label": np.zeros((2, 1), np.int64)}])
    assert isinstance(answer, InvalidOutput)
    assert str(answer).endswith("for the inputs in rows [1]")


def test_formats_decide_what_comes_back() -> None:
    raw, floats, png = make().answer(
        [ask(1), ask(1, format=text("float")), ask(1, format=text("png"))]
    )
    assert [set(tensors(answer)) for answer in (raw, floats, png)] == [
        {"image"},
        {"image", "image.sample"},
        {"image.encoded"},
    ]
    assert tensors(png)["image.encoded"][0, 0].startswith(b"\x89PNG")


def test_a_seed_and_its_z_draw_the_same() -> None:
    by_seed, by_z = make().answer(
        [ask(3), {"z": draw(3), "class_label": np.zeros((1, 1), np.int64)}]
    )
    np.testing.assert_array_equal(picture(by_seed), picture(by_z))


def test_an_engine_that_fails_takes_nobody_with_it(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Arithmetic):
        def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
            if len(inputs["z"]) == 2:
                raise MemoryError
            return super().run(inputs, outputs)

    generator = Generator(SPEC, {"generator": Failing()}, max_batch_size=16)
    failed, bad = generator.answer([ask(1, 2), ask(-1)])
    assert isinstance(failed, ServerFault)
    assert str(failed) == "the engine failed: MemoryError"
    assert isinstance(bad, BadRequest)
    np.testing.assert_array_equal(picture(generator.answer([ask(1)])[0]), picture_of_seed(1))
    assert "drawing failed" in caplog.text


def picture_of_seed(seed: int) -> NDArray[np.uint8]:
    return picture(make().answer([ask(seed)])[0])


# --- several inputs and outputs ------------------------------------------------------------------

SIZE = {"height": 4, "width": 3}
PHOTO = {"name": "photo", "kind": "picture", **SIZE, "channels": 3}
STRENGTH = {"name": "strength", "kind": "number", "minimum": 0.0, "maximum": 1.0, "default": 1.0}
MANY = make_spec(
    [z(4), {"name": "noise", "kind": "latent", "shape": [2, 3]}, PHOTO, STRENGTH],
    [
        image(4, 3, 3),
        {"name": "relit", "kind": "picture", **SIZE, "channels": 1},
        {"name": "alpha", "kind": "mask", **SIZE},
        {"name": "features", "kind": "vector", "size": 5},
    ],
    [
        {"network": "encoder", "takes": ["photo"], "gives": ["features"]},
        {
            "network": "decoder",
            "takes": ["features", "z", "noise", "strength"],
            "gives": ["image", "relit", "alpha"],
        },
    ],
)


def levels(value: float, rows: int, *shape: int) -> NDArray[np.uint8]:
    return np.full((rows, *shape), int(value) % 256, np.uint8)


class Encoder:
    """Five features of a photo, not finite for one that is all white."""

    engine_class = "arithmetic"

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        assert list(outputs) == ["features", "watch"]
        sums = inputs["photo"].astype(np.float32).mean(axis=(1, 2, 3))
        sums[sums == 255] = np.inf
        features = np.repeat(sums[:, None], 5, axis=1)
        return {"features": features, "watch": features.sum(axis=1)}


class Decoder:
    """What depends on all of them; NaN where strength is 0.5."""

    engine_class = "arithmetic"

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        total = sum(inputs[name].reshape(len(inputs["z"]), -1).sum(axis=1) for name in inputs)
        level = np.nan_to_num(np.abs(total) * 7, posinf=0).astype(np.int64) % 256
        watch = np.where(inputs["strength"][:, 0] == 0.5, np.nan, 0).astype(np.float32)
        shapes = {"image": (4, 3, 3), "relit": (4, 3, 1), "alpha": (4, 3)}
        made: Arrays = {"watch": watch}
        for place, (name, shape) in enumerate(shapes.items()):
            rows = (level + place).astype(np.uint8).reshape(-1, *[1] * len(shape))
            made[name] = np.broadcast_to(rows, (len(rows), *shape)).copy()
            if f"{name}.sample" in outputs:
                channels = shape[2] if len(shape) == 3 else 1
                made[f"{name}.sample"] = np.zeros((len(rows), channels, 4, 3), np.float32)
        return {name: made[name] for name in outputs}


def make_many() -> Generator:
    return Generator(MANY, {"encoder": Encoder(), "decoder": Decoder()}, max_batch_size=16)


def ask_many(*seeds: int, **more: Any) -> dict[str, Any]:
    photos = np.stack([levels(3 * seed, 4, 3, 3) for seed in seeds])
    return {"seed": np.array(seeds)[:, None], "photo": photos, **more}


def test_every_output_comes_in_the_form_that_was_asked_for() -> None:
    raw, floats, png = make_many().answer(
        [ask_many(1), ask_many(1, format=text("float")), ask_many(1, format=text("png"))]
    )
    pixels = {"image", "relit", "alpha"}
    assert set(tensors(raw)) == {*pixels, "features"}
    assert set(tensors(floats)) == {*pixels, *(f"{name}.sample" for name in pixels), "features"}
    assert set(tensors(png)) == {*(f"{name}.encoded" for name in pixels), "features"}
    for answer in (raw, floats):
        for item in MANY.outputs:
            assert tensors(answer)[item.name].shape == (1, *item.raw.row_shape)
    for name, channels in (("image", 3), ("relit", 1), ("alpha", 1)):
        decoded = decode_image(tensors(png)[f"{name}.encoded"][0, 0], channels)
        np.testing.assert_array_equal(decoded.reshape(tensors(raw)[name][0].shape),
                                      tensors(raw)[name][0])  # fmt: skip


def test_whatever_inputs_requests_carry_they_share_no_rows() -> None:
    z, noise = draw(1, 2), np.ones((2, 2, 3), np.float32)
    strength = np.array([[0.25], [0.75]], np.float32)
    requests = [
        ask_many(1, 2),
        ask_many(1, 2, strength=strength),
        ask_many(1, 2, noise=noise),
        ask_many(1, 2, z=z),
        {name: array for name, array in ask_many(1, 2, z=z, noise=noise).items() if name != "seed"},
        ask_many(3),
        ask_many(1, 2, format=text("float", 2)),
        ask_many(1, 2, noise=2 * noise),
    ]
    together = make_many().answer(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = make_many().answer([request])
        assert tensors(answer).keys() == tensors(alone).keys()
        for name, array in tensors(alone).items():
            np.testing.assert_array_equal(tensors(answer)[name], array)
    np.testing.assert_array_equal(together[0]["image"], together[3]["image"])  # type: ignore[index]
    assert (together[0]["image"] != together[2]["image"]).any()  # type: ignore[index]


def test_defaults_are_as_if_given() -> None:
    left_out, given_ = make_many().answer(
        [ask_many(4), ask_many(4, strength=np.ones((1, 1), np.float32))]
    )
    for name, array in tensors(left_out).items():
        np.testing.assert_array_equal(tensors(given_)[name], array)


@pytest.mark.parametrize("bad", ["encoder", "decoder"])
def test_nan_in_any_network_is_noticed(bad: str) -> None:
    request = ask_many(1, 2, strength=np.ones((2, 1), np.float32))
    if bad == "encoder":
        request["photo"][1] = 255
    else:
        request["strength"][1] = 0.5
    failed, other = make_many().answer([request, ask_many(3)])
    assert isinstance(failed, InvalidOutput)
    assert failed.seeds == (2,)
    assert set(tensors(other)) == {"image", "relit", "alpha", "features"}


def test_without_seeds_rows_are_named() -> None:
    generator = make_many()
    z, noise = draw(1, 2, 3), np.ones((3, 2, 3), np.float32)
    strength = np.array([[1], [0.5], [0.5]], np.float32)
    request = ask_many(1, 2, 3, z=z, noise=noise, strength=strength)
    del request["seed"]
    (answer,) = generator.answer([request])
    assert isinstance(answer, InvalidOutput)
    assert str(answer) == "NaN or infinity in the output for the inputs in rows [1, 2]"
    assert answer.seeds == ()
    assert generator.tally.invalid_outputs == 2


def without_a_picture() -> GeneratorSpec:
    features = {"name": "features", "kind": "vector", "size": 5}
    stage = {"network": "encoder", "takes": ["photo"], "gives": ["features"]}
    return make_spec([PHOTO], [features], [stage])


@pytest.mark.parametrize("image_format", list(Format))
def test_a_generator_of_features_gives_them_in_every_format(image_format: Format) -> None:
    generator = Generator(without_a_picture(), {"encoder": Encoder()}, max_batch_size=4)
    photos = levels(9, 2, 4, 3, 3)
    (answer,) = generator.answer([{"photo": photos, "format": text(image_format, 2)}])
    assert tensors(answer).keys() == {"features"}
    np.testing.assert_array_equal(tensors(answer)["features"], np.full((2, 5), 9, np.float32))
    (refused,) = generator.answer([{"photo": photos, "seed": np.zeros((2, 1), np.int64)}])
    assert isinstance(refused, BadRequest)
    assert str(refused) == "this model takes no seed; it takes photo, format"


@pytest.mark.parametrize("most", [1, 16])
def test_warming_up_draws_and_counts_nothing(most: int) -> None:
    drawn: list[int] = []

    class Counting(Encoder):
        def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
            drawn.append(len(inputs["photo"]))
            return super().run(inputs, outputs)

    generator = Generator(without_a_picture(), {"encoder": Counting()}, max_batch_size=most)
    generator.warm_up()
    assert drawn == [1, most]
    assert generator.tally.samples == 0
    assert set(generator.tally.seconds.values()) == {0.0}


class Broken(Arithmetic):
    """An engine that has no memory for more than one sample."""

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        if len(inputs["z"]) > 1:
            raise MemoryError("of what it computes nothing is told")
        return super().run(inputs, outputs)


def test_an_engine_that_fails_is_an_answer_and_no_end() -> None:
    generator = Generator(SPEC, {"generator": Broken()}, max_batch_size=16)
    failed = generator.answer([ask(1), ask(2)])
    assert [str(answer) for answer in failed] == ["the engine failed: MemoryError"] * 2
    assert all(isinstance(answer, ServerFault) for answer in failed)
    assert picture(generator.answer([ask(1)])[0]).shape == (1, 2, 2, 1)


def test_sums_of_several_networks_that_are_finite_do_not_overflow_together() -> None:
    spec = make_spec(
        [z(2)],
        [image(4, 4, 1), {"name": "taste", "kind": "vector", "size": 3}],
        [
            {"network": "painter", "takes": ["z"], "gives": ["image"]},
            {"network": "taster", "takes": ["z"], "gives": ["taste"]},
        ],
    )

    class Summing:
        engine_class = "summing"

        def __init__(self, watch: float) -> None:
            self.watch = watch

        def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
            made: Arrays = {
                "taste": np.zeros((1, 3), np.float32),
                "image": np.zeros((1, 4, 4, 1), np.uint8),
                "watch": np.array([self.watch], np.float32),
            }
            return {name: made[name] for name in outputs}

    for watches, is_finite in (
        ((3e38, 3e38), True),
        ((-3e38, np.inf), False),
        ((np.nan, 1), False),
    ):
        engines = dict(zip(("painter", "taster"), map(Summing, watches), strict=True))
        _, watch = StageRunner(spec, engines).run(
            spec.route(frozenset()), {"z": np.zeros((1, 2), np.float32)}
        )
        assert np.isfinite(watch).tolist() == [is_finite]
