import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import (
    MAX_SEED,
    LatentDrawer,
    check_seed,
    check_seeds,
    draw_seeds,
    draw_uniform,
    seed_range,
    stream_words,
)

SEEDS = st.integers(0, MAX_SEED)


def drawer_of(*shape: int, name: str = "z", **more: Any) -> LatentDrawer:
    return LatentDrawer(LatentInput(name=name, shape=shape, **more))


def test_z_of_several_axes_is_the_same_stream_in_order() -> None:
    flat = drawer_of(12).draw([7, 8])
    np.testing.assert_array_equal(drawer_of(3, 2, 2).draw([7, 8]), flat.reshape(2, 3, 2, 2))
    assert drawer_of(3, 2, 2).draw([]).shape == (0, 3, 2, 2)


@given(SEEDS)
def test_z_is_numpys_frozen_stream(seed: int) -> None:
    expected = np.random.RandomState(seed).randn(16).astype(np.float32)
    np.testing.assert_array_equal(drawer_of(16).draw([seed])[0], expected)


@given(st.lists(SEEDS, min_size=1, max_size=20), st.data())
def test_z_belongs_to_the_seed_whatever_surrounds_it(seeds: list[int], data: st.DataObject) -> None:
    drawer = drawer_of(8)
    place = data.draw(st.integers(0, len(seeds) - 1))
    np.testing.assert_array_equal(drawer.draw(seeds)[place], drawer.draw([seeds[place]])[0])


def test_the_first_numbers_of_seed_0_never_change() -> None:
    expected = np.array([1.7640524, 0.4001572, 0.978738, 2.2408931], np.float32)
    np.testing.assert_array_equal(drawer_of(4).draw([0])[0], expected)


@pytest.mark.parametrize(
    ("seed", "match"),
    [
        (-1, "seed -1 is out of range; a seed is an integer from 0 to 4294967295"),
        (2**32, "seed 4294967296 is out of range"),
        (1.0, r"seed 1\.0 is a float"),
        (True, "seed True is a bool"),
        (np.True_, "is a bool"),
        ("7", "seed '7' is a str"),
        (None, "seed None is a NoneType"),
    ],
)
def test_what_is_no_seed_is_refused(seed: object, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        check_seed(seed)
    with pytest.raises(BadRequest, match=match):
        check_seeds([3, seed])


@given(st.lists(SEEDS, min_size=1))
def test_seeds_come_back_as_they_are(seeds: list[int]) -> None:
    assert check_seeds(seeds).tolist() == seeds
    assert check_seeds(np.array(seeds, np.uint64)).tolist() == seeds


def test_arrays_of_anything_else_are_refused() -> None:
    assert check_seeds(np.array(5)).tolist() == [5]
    with pytest.raises(BadRequest, match="is a float"):
        check_seeds(np.array([1.0]))
    with pytest.raises(BadRequest, match="is a list"):
        check_seeds(np.array([[1]]))
    with pytest.raises(BadRequest, match="is a MaskedConstant"):
        check_seeds(np.ma.array([1, 2], mask=[False, True]))  # type: ignore[no-untyped-call]
    for raw in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        with pytest.raises(BadRequest, match=f"is a {type(raw).__name__}"):
            check_seeds(raw)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63 - 1])
def test_one_bad_seed_in_an_array_is_named(seed: int) -> None:
    with pytest.raises(BadRequest, match=f"seed {seed} is out of range"):
        check_seeds(np.array([3, seed, 4], np.int64))


def test_no_seeds_are_refused() -> None:
    with pytest.raises(BadRequest, match="no seeds were given; give at least one"):
        check_seeds([])


@given(SEEDS, st.integers(1, 100))
@example(MAX_SEED, 1)
@example(MAX_SEED, 2)
def test_a_range_counts_up_or_is_refused_past_the_end(first: int, count: int) -> None:
    if first + count - 1 > MAX_SEED:
        with pytest.raises(BadRequest, match=f"{count} seeds from {first} run past {MAX_SEED}"):
            seed_range(first, count)
    else:
        assert seed_range(first, count).tolist() == list(range(first, first + count))


def test_a_range_without_seeds_is_refused() -> None:
    with pytest.raises(BadRequest, match="count 0 is below 1; ask for at least one sample"):
        seed_range(5, 0)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63 - 1])
def test_an_array_of_integers_is_checked_like_a_list(seed: int) -> None:
    for seeds in (np.array([3, seed]), [3, seed]):
        with pytest.raises(BadRequest, match=f"^seed {seed} is out of range"):
            check_seeds(seeds)


def test_drawn_seeds_are_seeds_and_differ() -> None:
    seeds = draw_seeds(100)
    assert len(set(check_seeds(seeds).tolist())) > 90
    assert len(draw_seeds(1)) == 1
    with pytest.raises(BadRequest, match="n=0; n is the number of samples"):
        draw_seeds(0)


PURPOSES = st.text(max_size=30)


def test_the_words_of_these_purposes_never_change() -> None:
    assert stream_words("job:class_label") == (3213035267, 2660177863)
    assert stream_words("latent:noise") == (2100790853, 1413707606)


@given(PURPOSES)
def test_a_purpose_is_two_words_of_its_hash(purpose: str) -> None:
    digest = hashlib.sha256(purpose.encode()).digest()
    words = tuple(int.from_bytes(digest[at : at + 4], "little") for at in (0, 4))
    assert stream_words(purpose) == words


@given(st.lists(SEEDS, min_size=1, max_size=20), PURPOSES)
def test_a_further_stream_is_numpys_frozen_one_of_seed_and_purpose(
    seeds: list[int], purpose: str
) -> None:
    drawn = draw_uniform(seeds, purpose)
    words = stream_words(purpose)
    expected = [np.random.RandomState([seed, *words]).random_sample() for seed in seeds]
    assert drawn.dtype == np.float64
    assert drawn.tolist() == expected
    assert ((drawn >= 0) & (drawn < 1)).all()


@given(st.lists(SEEDS, min_size=1, max_size=20), PURPOSES, st.data())
def test_a_number_belongs_to_the_seed_whatever_surrounds_it(
    seeds: list[int], purpose: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(seeds) - 1))
    whole = draw_uniform(np.array(seeds, np.int64), purpose)
    assert whole[place] == draw_uniform([seeds[place]], purpose)[0]


@pytest.mark.parametrize(
    ("seed", "purpose", "number"),
    [
        (0, "job:class_label", 0.40975502113408524),
        (0, "job:truncation_psi", 0.17626474975672912),
        (1, "job:class_label", 0.5649854229335983),
        (7, "job:truncation_psi", 0.015933271924389314),
        (MAX_SEED, "job:class_label", 0.6628138156404404),
        (MAX_SEED, "job:truncation_psi", 0.9151698848355732),
    ],
)
def test_the_numbers_of_these_seeds_never_change(seed: int, purpose: str, number: float) -> None:
    assert draw_uniform([seed], purpose).tolist() == [number]


def test_streams_and_neighbouring_seeds_have_nothing_to_do_with_each_other() -> None:
    seeds = np.arange(5000)
    first, second = draw_uniform(seeds, "job:class_label"), draw_uniform(seeds, "job:size")
    z, noise = drawer_of(1).draw(seeds)[:, 0], drawer_of(1, name="noise").draw(seeds)[:, 0]
    limit = 5 / np.sqrt(len(seeds))
    for drawn in (first, second):
        assert abs(drawn.mean() - 0.5) < limit * np.sqrt(1 / 12)
        assert len(np.unique(drawn)) == len(seeds)
        counts, _ = np.histogram(drawn, 10, (0, 1))
        assert ((counts - 500) ** 2 / 500).sum() < 40  # chi-squared with 9 degrees of freedom
    pairs: list[tuple[NDArray[Any], NDArray[Any]]]
    pairs = [(first, second), (first[:-1], first[1:]), (first, z), (second, z)]
    pairs += [(noise, z), (noise, first), (noise[:-1], noise[1:])]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < limit for a, b in pairs)


def test_no_seeds_draw_no_numbers() -> None:
    assert draw_uniform([], "job:class_label").shape == (0,)


@given(SEEDS)
def test_another_latent_has_a_stream_of_its_own(seed: int) -> None:
    words = stream_words("latent:noise")
    expected = np.random.RandomState([seed, *words]).randn(3, 5).astype(np.float32)
    noise = drawer_of(3, 5, name="noise").draw([seed])[0]
    np.testing.assert_array_equal(noise, expected)
    assert not np.array_equal(noise.ravel(), drawer_of(15).draw([seed])[0])
    assert not np.array_equal(noise, drawer_of(3, 5, name="noise2").draw([seed])[0])


def test_the_first_numbers_of_another_latent_never_change() -> None:
    expected = np.array([-0.6125634, -0.3878396, 0.20122051, -1.1134056], np.float32)
    np.testing.assert_array_equal(drawer_of(4, name="noise").draw([0])[0], expected)


@given(SEEDS, st.floats(-100, 100), st.floats(0.1, 100))
def test_uniform_latents_fill_their_range(seed: int, minimum: float, span: float) -> None:
    latent = drawer_of(200, distribution="uniform", minimum=minimum, maximum=minimum + span)
    drawn = latent.draw([seed])[0]
    share = np.random.RandomState(seed).random_sample(200)
    expected = (minimum + (minimum + span - minimum) * share).astype(np.float32)
    np.testing.assert_array_equal(drawn, expected)
    assert (drawn >= np.float32(minimum)).all()
    assert (drawn <= np.float32(minimum + span)).all()


def truncated_one_by_one(state: np.random.RandomState, count: int, bound: float) -> list[float]:
    """Return a truncated normal; what is too large is drawn again, one by one in its order."""
    row = [float(number) for number in state.randn(count)]
    while beyond := [place for place, number in enumerate(row) if abs(number) > bound]:
        for place in beyond:
            row[place] = float(state.randn())
    return row


@given(SEEDS, st.sampled_from([0.4, 1.0, 2.0, 10.0]))
def test_a_truncated_normal_is_drawn_again_in_its_order(seed: int, bound: float) -> None:
    drawn = drawer_of(5, 9, distribution="truncated_normal", bound=bound).draw([seed])[0]
    expected = truncated_one_by_one(np.random.RandomState(seed), 45, bound)
    np.testing.assert_array_equal(drawn.ravel(), np.array(expected, np.float32))
    assert (np.abs(drawn) <= np.float32(bound)).all()


def test_what_a_truncated_normal_keeps_is_the_normal_one() -> None:
    seeds = np.arange(50)
    normal = drawer_of(100).draw(seeds)
    drawn = drawer_of(100, distribution="truncated_normal", bound=1.0).draw(seeds)
    kept = np.abs(normal) <= 1
    np.testing.assert_array_equal(drawn[kept], normal[kept])
    assert 0.5 < kept.mean() < 0.9
    # A normal number that is at most 1 deviates by 0.5397 (its variance is 1 - 2 phi(1) / 0.6827).
    assert abs(drawn.std() - 0.5397) < 0.02


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@given(seeds=st.lists(SEEDS, min_size=1, max_size=6), data=st.data())
def test_any_latent_belongs_to_the_seed_whatever_surrounds_it(
    distribution: str, seeds: list[int], data: st.DataObject
) -> None:
    drawer = drawer_of(3, 3, name="noise", distribution=distribution, bound=0.5)
    place = data.draw(st.integers(0, len(seeds) - 1))
    np.testing.assert_array_equal(drawer.draw(seeds)[place], drawer.draw([seeds[place]])[0])
