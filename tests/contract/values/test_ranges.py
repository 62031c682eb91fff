import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.contract.errors import BadRequest
from latentry.contract.values.ranges import integers_from_text, seeds_from_text

SEED = st.integers(0, 2**32 - 1)
ITEM = st.one_of(
    SEED.map(lambda seed: (str(seed), [seed])),
    st.tuples(SEED, st.integers(0, 50)).map(
        lambda pair: (
            f"{pair[0]}-{min(pair[0] + pair[1], 2**32 - 1)}",
            list(range(pair[0], min(pair[0] + pair[1], 2**32 - 1) + 1)),
        )
    ),
)


@given(st.lists(ITEM, min_size=1, max_size=6), st.sampled_from([",", ", ", " ,"]))
def test_a_list_means_its_items_in_order(
    items: list[tuple[str, list[int]]], separator: str
) -> None:
    seeds = seeds_from_text("--seeds", separator.join(text for text, _ in items))
    assert seeds.dtype == np.int64
    assert seeds.tolist() == [seed for _, numbers in items for seed in numbers]


def test_the_documented_example() -> None:
    assert seeds_from_text("--seeds", "1,2,5-7").tolist() == [1, 2, 5, 6, 7]


@given(st.text(max_size=12))
def test_other_text_is_refused_and_never_crashes(text: str) -> None:
    try:
        seeds = seeds_from_text("--seeds", text)
    except BadRequest:
        return
    assert set(text) <= set("0123456789-, \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\xa0")
    assert seeds.min() >= 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "^--seeds holds ''; give integers and ranges"),
        ("7-5", "7-5, which runs backwards; 5-7?"),
        ("4294967296", "seed 4294967296 is out of range"),
        ("4294967290-4294967296", "seed 4294967296 is out of range"),
        ("-1", "seed -1 is out of range; a seed is an integer from 0 to 4294967295"),
        ("1.5", "holds '1.5'"),
        ("1,,2", "holds ''"),
        ("1-2-3", "holds '1-2-3'"),
        ("٣", "holds '٣'"),
        ("0-4294967295", "names 4294967296 numbers; one call takes"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words.replace("?", r"\?")):
        seeds_from_text("--seeds", text)


def test_the_words_of_a_refusal_are_the_callers() -> None:
    with pytest.raises(BadRequest, match="^--seeds holds 'x'; give integers and ranges"):
        seeds_from_text("--seeds", "x")
    with pytest.raises(BadRequest, match="^class_label holds 'x'; give integers and ranges"):
        integers_from_text("class_label", "x")


def test_integers_are_not_bound_to_what_seeds_may_be() -> None:
    assert integers_from_text("steps", "0-2,7").tolist() == [0, 1, 2, 7]
    assert integers_from_text("steps", "4294967296").tolist() == [2**32]
    assert integers_from_text("steps", f"{2**63 - 2}-{2**63 - 1}").tolist() == [
        2**63 - 2,
        2**63 - 1,
    ]
    assert integers_from_text("steps", "0-2,7").dtype == np.int64
    with pytest.raises(BadRequest, match="steps holds 9223372036854775808, which does not fit in"):
        integers_from_text("steps", "9223372036854775808")
    with pytest.raises(BadRequest, match=r"steps holds 2-0, which runs backwards; 0-2\?"):
        integers_from_text("steps", "2-0")


def test_what_is_refused_is_called_as_the_caller_says() -> None:
    for parse in (seeds_from_text, integers_from_text):
        for text in ("x", "7-5", "0-4294967294"):
            with pytest.raises(BadRequest, match="^--these (holds|0-4294967294 names)"):
                parse("--these", text)
