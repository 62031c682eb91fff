"""What holds for every kind, whatever is declared."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from specs import Part

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.kind import InputKind, OutputKind
from latentry.contract.kinds.label_map import LabelMapOutput
from latentry.contract.kinds.registry import input_from_any, output_from_any
from latentry.contract.kinds.vector import VectorOutput

FLOATS = st.floats(-1e6, 1e6, width=32)
SIDES = st.integers(1, 9)
INT64 = st.integers(-(2**63), 2**63 - 1)


def ends(minimum: Any, maximum: Any) -> Part:
    return {"minimum": minimum, "maximum": maximum}


def ordered(values: st.SearchStrategy[Any], *, differ: bool = False) -> st.SearchStrategy[Part]:
    pairs = st.tuples(values, values).map(sorted)
    return pairs.filter(lambda p: p[0] < p[1] or not differ).map(lambda pair: ends(*pair))


def part(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Part]:
    return st.fixed_dictionaries({"name": st.just("x"), "kind": st.just(kind), **fields})


def with_default(item: Part) -> st.SearchStrategy[Part]:
    return st.sampled_from([item, {**item, "default": item["minimum"]}])


def pixels(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Part]:
    return part(kind, height=SIDES, width=SIDES, **fields)


LATENTS = st.tuples(
    part(
        "latent",
        shape=st.lists(st.integers(1, 4), min_size=1, max_size=6),
        distribution=st.sampled_from(["normal", "truncated_normal", "uniform", "none"]),
        bound=st.floats(0.1, 1e6),
    ),
    ordered(FLOATS, differ=True),
).map(lambda pair: {**pair[0], **pair[1]})
NUMBERS = st.tuples(part("number"), ordered(FLOATS)).map(lambda p: {**p[0], **p[1]})
INTEGERS = st.tuples(part("integer"), ordered(INT64)).map(lambda p: {**p[0], **p[1]})
VECTORS = st.tuples(part("vector", size=SIDES), ordered(FLOATS, differ=True)).map(
    lambda pair: {**pair[0], **pair[1]}
)
INPUTS = st.one_of(
    LATENTS,
    part("class", classes=st.lists(st.text(max_size=5), min_size=1, max_size=30)),
    NUMBERS.flatmap(with_default),
    INTEGERS.flatmap(with_default),
    VECTORS.flatmap(lambda v: st.sampled_from([v, {**v, "default": [v["maximum"]] * v["size"]}])),
    pixels("picture", channels=st.sampled_from([1, 3, 4])),
    pixels("mask"),
    pixels("label_map", labels=st.integers(2, 256)),
).map(input_from_any)
OUTPUTS = st.one_of(
    pixels("picture", channels=st.sampled_from([1, 3, 4])),
    pixels("mask"),
    pixels("label_map", labels=st.integers(2, 9)),
    part("vector", size=SIDES),
    part("tensor", shape=st.lists(st.integers(1, 4), min_size=1, max_size=6)),
).map(output_from_any)


@given(INPUTS, st.integers(1, 12))
def test_examples_are_allowed(item: InputKind, count: int) -> None:
    rows = item.examples(count)
    assert rows.shape == (count, *item.row_shape)
    item.check(rows)


@given(INPUTS)
def test_a_default_is_allowed(item: InputKind) -> None:
    if (row := item.default_row()) is not None:
        assert row.shape == item.row_shape
        item.check(row[None])


@given(INPUTS, st.integers(1, 5))
def test_rows_mean_themselves_and_one_row_is_for_all(item: InputKind, count: int) -> None:
    rows = item.examples(count)
    read, is_one = item.rows_from_value(rows, most=count)
    assert (read.dtype, is_one) == (np.dtype(item.dtype), False)
    np.testing.assert_array_equal(read, rows)
    one = (
        rows[0, 0] if item.row_shape == (1,) and item.kind not in ("latent", "vector") else rows[0]
    )
    for held in (one, one.tolist(), iter(one) if one.ndim else one):
        read, is_one = item.rows_from_value(held, most=1)
        assert (read.shape, is_one) == ((1, *item.row_shape), True)
        np.testing.assert_array_equal(read, rows[:1])
    for given_rows in (list(rows), (row for row in rows), rows.tolist()):
        read, _ = item.rows_from_value(given_rows, most=count)
        np.testing.assert_array_equal(read, rows)


@given(INPUTS)
def test_no_more_than_asked_is_read(item: InputKind) -> None:
    taken = 0

    def rows() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield item.examples(1)[0]

    read, is_one = item.rows_from_value(rows(), most=12)
    assert (len(read), is_one, taken) == (13, False, 13)


@given(INPUTS, st.sampled_from([{}, {1: 2}, None, object(), b"\0", {1}, memoryview(b"ab")]))
def test_what_nobody_means_is_a_bad_request(item: InputKind, value: Any) -> None:
    with pytest.raises(BadRequest, match="^x "):
        item.rows_from_value(value, most=3)


@given(INPUTS, st.text(max_size=20))
def test_any_text_means_something_or_is_refused_and_never_crashes(
    item: InputKind, text: str
) -> None:
    try:
        value = item.value_from_text(text)
        rows, _ = item.rows_from_value(value, most=100)
        item.check(rows)
    except BadRequest as error:
        said = str(error)
    else:
        said = "x"
    assert said.startswith("x")


@given(INPUTS)
def test_a_row_is_a_text_of_latin_1_and_a_part_of_a_files_name(item: InputKind) -> None:
    rows = item.examples(3)
    for row in rows:
        assert item.text(row).encode("latin-1")
        assert len(item.text(row)) < 1000
        assert re.fullmatch(r"([A-Za-z0-9_.+-]+)?", item.stem(row))
        assert (item.text(row), item.stem(row)) == (item.text(row.copy()), item.stem(row.copy()))
    different = {row.tobytes() for row in rows}
    assert len({item.text(row) for row in rows}) == len(different)


@given(INPUTS)
def test_what_is_allowed_is_said_in_one_line_and_in_every_refusal(item: InputKind) -> None:
    assert item.allowed
    wrong = np.zeros((1, *item.row_shape), np.complex64)
    with pytest.raises(BadRequest, match="^x has dtype complex64; it takes ") as refusal:
        item.check(wrong)
    assert str(refusal.value).endswith(item.allowed)
    shape = (1, *item.row_shape, 2)
    with pytest.raises(BadRequest, match="^x has rows of shape .*; it takes rows of shape "):
        item.check(np.zeros(shape, item.dtype))


@given(OUTPUTS, st.sampled_from(list(Format)))
def test_an_output_travels_by_tensors_of_its_own_name(item: OutputKind, form: Format) -> None:
    tensors = item.tensors(form)
    assert {name.partition(".")[0] for name in tensors} == {"x"}
    assert item.raw == item.tensors(Format.RAW)["x"]
    if form is Format.FLOAT:
        assert item.row_bytes(form) >= item.row_bytes(Format.RAW)
    if form.encoded:
        assert item.row_bytes(form) == item.row_bytes(Format.RAW)


@given(OUTPUTS, st.integers(1, 3))
def test_a_forward_becomes_the_tensors_that_are_declared(item: OutputKind, count: int) -> None:
    torch = pytest.importorskip("torch")
    shape = [3 if side is None else side for side in item.network_shape]
    found = item.from_network(torch.randn(count, *shape))
    declared = item.tensors(Format.FLOAT)
    assert list(found) == list(declared)
    for name, kind in declared.items():
        assert found[name].shape[0] == count
        assert kind.fits(tuple(found[name].shape[1:]))
        assert found[name].numpy().dtype == kind.dtype


@given(INPUTS, st.integers(1, 3))
def test_a_network_gets_a_tensor_of_every_input(item: InputKind, count: int) -> None:
    torch = pytest.importorskip("torch")
    given_to_it = item.to_network(torch.from_numpy(item.examples(count)))
    assert len(given_to_it) == count
    assert given_to_it.dtype in (torch.float32, torch.int64)


@given(OUTPUTS)
def test_an_output_is_the_same_as_itself(item: OutputKind) -> None:
    dtype, row_shape = item.raw.dtype, item.raw.row_shape
    rows: NDArray[Any] = np.random.RandomState(0).random_sample((2, *row_shape)) * 200
    rows = rows.astype(dtype)
    assert item.is_same_but_for_rounding(rows, rows.copy())
    assert not item.is_same_but_for_rounding(rows, 255 - rows)
    assert item.find_constant(rows).shape == (2,)


def test_how_like_rows_are_is_what_their_kind_says() -> None:
    labels = LabelMapOutput(name="parts", height=4, width=5, labels=3)
    expected = np.zeros((3, 4, 5), np.uint8)
    found = expected.copy()
    found[1, 0, 0], found[2] = 2, 1
    assert labels.psnr(found, expected).round(2).tolist() == [np.inf, 13.01, 0]  # none, 1/20, all
    scores = VectorOutput(name="scores", size=1)
    near = scores.psnr(np.array([[0.001], [100.1]]), np.array([[0.0], [100.0]]))
    assert near.round(1).tolist() == [60, 60]  # of 1 at least, or of what it is itself
