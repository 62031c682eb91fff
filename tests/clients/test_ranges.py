import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.clients import BadRequest
from latentry.clients.ranges import parse_classes, parse_seeds

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
    seeds = parse_seeds(separator.join(text for text, _ in items))
    assert seeds.dtype == np.int64
    assert seeds.tolist() == [seed for _, numbers in items for seed in numbers]


def test_the_documented_example() -> None:
    assert parse_seeds("1,2,5-7").tolist() == [1, 2, 5, 6, 7]


@given(st.text(max_size=12))
def test_other_text_is_refused_and_never_crashes(text: str) -> None:
    try:
        seeds = parse_seeds(text)
    except BadRequest:
        return
    assert set(text) <= set("0123456789-, \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\xa0")
    assert seeds.min() >= 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "^seeds holds ''; give integers and ranges"),
        ("7-5", "7-5, which runs backwards; 5-7?"),
        ("4294967296", "seed 4294967296 is out of range"),
        ("4294967290-4294967296", "seed 4294967296 is out of range"),
        ("-1", "holds '-1'"),
        ("1.5", "holds '1.5'"),
        ("1,,2", "holds ''"),
        ("1-2-3", "holds '1-2-3'"),
        ("٣", "holds '٣'"),
        ("0-4294967295", "names 4294967296 numbers; one call takes"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words.replace("?", r"\?")):
        parse_seeds(text)


def test_what_is_refused_is_called_as_the_caller_says() -> None:
    for parse in (parse_seeds, parse_classes):
        for text in ("x", "7-5", "0-4294967294"):
            with pytest.raises(BadRequest, match="^--these (holds|0-4294967294 names)"):
                parse(text, called="--these")


def test_classes() -> None:
    assert parse_classes("0-2,7").tolist() == [0, 1, 2, 7]
    with pytest.raises(BadRequest, match="^class_label holds 'x'"):
        parse_classes("x")
    with pytest.raises(BadRequest, match="is no class of any model"):
        parse_classes("9223372036854775807")
