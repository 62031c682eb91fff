from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import (
    MAX_SEED,
    LatentDrawer,
    check_seed,
    check_seeds,
    draw_seeds,
    draw_uniform,
    seed_range,
)

SEEDS = st.integers(0, MAX_SEED)


@given(SEEDS)
def test_z_is_numpys_frozen_stream(seed: int) -> None:
    expected = np.random.RandomState(seed).randn(16).astype(np.float32)
    np.testing.assert_array_equal(LatentDrawer(16).draw([seed])[0], expected)


@given(st.lists(SEEDS, min_size=1, max_size=20), st.data())
def test_z_belongs_to_the_seed_whatever_surrounds_it(seeds: list[int], data: st.DataObject) -> None:
    drawer = LatentDrawer(8)
    place = data.draw(st.integers(0, len(seeds) - 1))
    np.testing.assert_array_equal(drawer.draw(seeds)[place], drawer.draw([seeds[place]])[0])


def test_the_first_numbers_of_seed_0_never_change() -> None:
    expected = np.array([1.7640524, 0.4001572, 0.978738, 2.2408931], np.float32)
    np.testing.assert_array_equal(LatentDrawer(4).draw([0])[0], expected)


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
    with pytest.raises(BadRequest, match="n=0; n is the number of samples"):
        draw_seeds(0)


STREAMS = st.integers(1, 2**32 - 1)


@given(st.lists(SEEDS, min_size=1, max_size=20), STREAMS)
def test_a_further_stream_is_numpys_frozen_one_of_seed_and_stream(
    seeds: list[int], stream_id: int
) -> None:
    drawn = draw_uniform(seeds, stream_id)
    expected = [np.random.RandomState([seed, stream_id]).random_sample() for seed in seeds]
    assert drawn.dtype == np.float64
    assert drawn.tolist() == expected
    assert ((drawn >= 0) & (drawn < 1)).all()


@given(st.lists(SEEDS, min_size=1, max_size=20), STREAMS, st.data())
def test_a_number_belongs_to_the_seed_whatever_surrounds_it(
    seeds: list[int], stream_id: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(seeds) - 1))
    whole = draw_uniform(np.array(seeds, np.int64), stream_id)
    assert whole[place] == draw_uniform([seeds[place]], stream_id)[0]


@pytest.mark.parametrize(
    ("seed", "stream_id", "number"),
    [
        (0, 1, 0.11299430095636409),
        (0, 2, 0.011451121320907864),
        (1, 1, 0.2309331037176915),
        (7, 2, 0.7042964166818435),
        (MAX_SEED, 1, 0.8179491011186121),
        (MAX_SEED, 2, 0.14982655216448926),
    ],
)
def test_the_numbers_of_these_seeds_never_change(seed: int, stream_id: int, number: float) -> None:
    assert draw_uniform([seed], stream_id).tolist() == [number]


def test_streams_and_neighbouring_seeds_have_nothing_to_do_with_each_other() -> None:
    seeds = np.arange(5000)
    first, second = draw_uniform(seeds, 1), draw_uniform(seeds, 2)
    z = LatentDrawer(1).draw(seeds)[:, 0]
    limit = 5 / np.sqrt(len(seeds))
    for drawn in (first, second):
        assert abs(drawn.mean() - 0.5) < limit * np.sqrt(1 / 12)
        assert len(np.unique(drawn)) == len(seeds)
        counts, _ = np.histogram(drawn, 10, (0, 1))
        assert ((counts - 500) ** 2 / 500).sum() < 40  # chi-squared with 9 degrees of freedom
    pairs: list[tuple[NDArray[Any], NDArray[Any]]]
    pairs = [(first, second), (first[:-1], first[1:]), (first, z), (second, z)]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < limit for a, b in pairs)


def test_no_seeds_draw_no_numbers() -> None:
    assert draw_uniform([], 1).shape == (0,)
