from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest, InvalidOutput, ServerFault
from latentry.contract.images import uint8_from_sample
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.serving.runtime.generator import Generator, truncate

SPEC = GeneratorSpec.model_validate(
    {
        "inputs": [{"role": "z", "shape": [4]}, {"role": "class_label", "classes": ["a", "b"]}],
        "image": {"height": 2, "width": 2, "channels": 1},
    }
)


class Arithmetic:
    """An engine that returns tanh(z) + class as its picture, and NaN for one seed."""

    engine_class = "arithmetic"
    nan_seed = 13

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        z = inputs["z"]
        sample = (np.tanh(z) * 0.5 + inputs["class_label"] * 0.1).astype(np.float32)
        sample[(z == LatentDrawer(4).draw([self.nan_seed])[0]).all(axis=1), 0] = np.nan
        sample = sample.reshape(-1, 1, 2, 2)
        made = {
            "sample": sample,
            "image": uint8_from_sample(np.nan_to_num(sample)),
            "peak": np.abs(sample).max(axis=(1, 2, 3)),
        }
        return {name: made[name] for name in outputs}


def make() -> Generator:
    return Generator(SPEC, {"generator": Arithmetic()}, max_batch_size=16)


def ask(*seeds: int, label: int = 0, **more: Any) -> dict[str, Any]:
    column = np.array(seeds, np.int64)[:, None]
    return {"seed": column, "class_label": np.full_like(column, label), **more}


def image(answer: Any) -> NDArray[np.uint8]:
    assert isinstance(answer, dict), answer
    picture: NDArray[np.uint8] = answer["image"]
    return picture


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_request_gets_the_same_alone_and_in_any_company(batches: list[list[int]]) -> None:
    batches = [[seed + (seed == Arithmetic.nan_seed) for seed in seeds] for seeds in batches]
    together = make().answer([ask(*seeds) for seeds in batches])
    for seeds, answer in zip(batches, together, strict=True):
        for seed, row in zip(seeds, image(answer), strict=True):
            np.testing.assert_array_equal(row, image(make().answer([ask(seed)])[0])[0])


def test_a_bad_request_fails_alone() -> None:
    answers = make().answer([ask(1), ask(2, label=5), ask(3)])
    assert isinstance(answers[1], BadRequest)
    assert "class_label in row 0 is 5" in str(answers[1])
    np.testing.assert_array_equal(image(answers[2]), image(make().answer([ask(3)])[0]))


def test_nan_fails_its_own_request_and_is_counted() -> None:
    generator = make()
    answers = generator.answer([ask(12), ask(11, 13), ask(14)])
    assert isinstance(answers[1], InvalidOutput)
    assert answers[1].seeds == (13,)
    assert str(answers[1]) == "NaN or infinity in the output for seeds [13]"
    assert image(answers[0]).shape == image(answers[2]).shape == (1, 2, 2, 1)
    assert (generator.tally.samples, generator.tally.invalid_outputs) == (2, 1)


def test_a_warm_up_counts_for_nothing() -> None:
    generator = make()
    generator.warm_up()
    assert (generator.tally.samples, set(generator.tally.seconds.values())) == (0, {0.0})
    generator.answer([ask(1, 2)])
    assert generator.tally.samples == 2
    assert generator.tally.seconds["engine"] > 0


def test_nan_for_a_latent_names_the_row() -> None:
    z = LatentDrawer(4).draw([5, Arithmetic.nan_seed])
    (answer,) = make().answer([{"z": z, "class_label": np.zeros((2, 1), np.int64)}])
    assert isinstance(answer, InvalidOutput)
    assert str(answer).endswith("for the z in rows [1]")


def test_formats_decide_what_comes_back() -> None:
    raw, floats, png = make().answer(
        [
            ask(1),
            ask(1, format=np.array([[b"float"]], object)),
            ask(1, format=np.array([[b"png"]], object)),
        ]
    )
    assert isinstance(raw, dict)
    assert isinstance(floats, dict)
    assert isinstance(png, dict)
    assert [set(answer) for answer in (raw, floats, png)] == [
        {"image"},
        {"image", "sample"},
        {"encoded"},
    ]
    assert png["encoded"][0, 0].startswith(b"\x89PNG")


def test_a_seed_and_its_z_draw_the_same() -> None:
    z = LatentDrawer(4).draw([3])
    by_seed, by_z = make().answer([ask(3), {"z": z, "class_label": np.zeros((1, 1), np.int64)}])
    np.testing.assert_array_equal(image(by_seed), image(by_z))


@given(st.floats(-2, 2, width=32))
def test_truncation_moves_towards_the_average(psi: float) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 3, 4)).astype(np.float32)
    w_avg = rng.standard_normal(4).astype(np.float32)
    moved = truncate(w, w_avg, np.full((2, 1), psi, np.float32))
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved, w_avg + np.float32(psi) * (w - w_avg), atol=2e-6)


@pytest.mark.parametrize("psi", [0.0, 1.0])
def test_the_ends_of_truncation_are_exact(psi: float) -> None:
    w = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32) * 1000
    w_avg = np.arange(4, dtype=np.float32)
    expected = w if psi == 1.0 else np.broadcast_to(w_avg, w.shape)
    np.testing.assert_array_equal(truncate(w, w_avg, np.full((1, 1), psi, np.float32)), expected)


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
    assert image(generator.answer([ask(1)])[0]).shape == (1, 2, 2, 1)
