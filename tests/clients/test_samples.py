import array
import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from doubles import InfoOf, asked
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from specs import image, make_spec, z

from latentry.clients import BadRequest
from latentry.clients.samples import (
    check_chunk_size,
    stream_requests,
    unary_requests,
)
from latentry.contract.values.ranges import MAX_SAMPLES
from latentry.contract.wire import Rows, rows_from_request
from latentry.serving.runtime.streaming import stream_from_request

Z = np.zeros((3, 4), np.float32)
MASKED: Any = np.ma.array  # it has no types


class Failing:
    """Raises an error wherever it is asked for a number, its length or its text."""

    def __index__(self) -> int:
        raise ValueError("no number today")

    def __float__(self) -> float:
        return self.__index__()

    def __repr__(self) -> str:
        return str(self.__index__())


class FailingLength(list[int]):
    def __len__(self) -> int:
        raise RuntimeError("no length today")


class FailingArray:
    @property
    def __array__(self) -> object:
        raise OSError("no array today")


def failing_iterator() -> Iterator[int]:
    yield 1
    raise KeyError("no more today")


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


REFUSED = [
    ("plain", {"seeds": itself()}, "seeds cannot be read .RecursionError: .*; it takes an integer"),
    ("plain", {"z": [itself()]}, "z cannot be read .RecursionError"),
    ("digits", {"seeds": 1, "class_label": itself()}, "class_label cannot be read .RecursionError"),
    ("plain", {"seeds": Failing()}, "seeds cannot be read .ValueError: no number today"),
    ("plain", {"seeds": [Failing()]}, "seeds cannot be read .ValueError: no number today"),
    ("plain", {"n": Failing()}, "n=<Failing>; it takes the number of samples"),
    ("plain", {"n": 10**5000}, "n=<int>; it takes the number of samples"),
    ("plain", {"z": [[Failing()]]}, "z cannot be read .ValueError: no number today"),
    ("plain", {"seeds": FailingLength()}, "seeds cannot be read .RuntimeError: no length today"),
    ("plain", {"seeds": FailingArray()}, "seeds cannot be read .OSError: no array today"),
    ("plain", {"seeds": failing_iterator()}, "seeds cannot be read .KeyError: 'no more today'"),
    ("plain", {"seeds": range(2**100)}, "seeds cannot be read .OverflowError"),
    ("mapped", {"seeds": 1, "truncation_psi": Failing()}, "truncation_psi cannot be read"),
    ("plain", {"seeds": memoryview(b"ab")}, "seeds holds <memory at .*>, a memoryview"),
    ("plain", {"seeds": memoryview(bytearray(b"ab"))}, "a memoryview"),
    ("plain", {"z": [memoryview(b"abcd")]}, "z holds <memory at .*>, a memoryview"),
    ("plain", {"seeds": MASKED([1, 2], mask=[0, 1])}, "seeds is a masked array, which may"),
    ("plain", {"seeds": [np.ma.masked]}, "seeds is a masked array"),
    ("plain", {"z": MASKED(Z, mask=Z == 0)}, r"z is a masked array.* give \.filled"),
    ("digits", {"seeds": 1, "class_label": MASKED([1])}, "class_label is a masked array"),
    ("plain", {"seeds": -1}, "seed -1 is out of range"),
    ("plain", {"seeds": 2**32}, "seed 4294967296 is out of range"),
    ("plain", {"seeds": range(2**32 - 1, 2**32 + 1)}, "seed 4294967296 is out of range"),
    ("plain", {"seeds": 1.0}, "seeds holds 1.0, a float"),
    ("plain", {"seeds": True}, "seeds holds True, a bool"),
    ("plain", {"seeds": [1, True]}, "seeds holds True, a bool"),
    ("plain", {"seeds": "12"}, "seeds holds '12', a str"),
    ("plain", {"seeds": {1: 2}}, "seeds holds {1: 2}, a dict"),
    ("plain", {"seeds": {7}}, r"seeds holds \{7\}, a set"),
    ("plain", {"seeds": b"12"}, "seeds holds b'12', a bytes"),
    ("plain", {"seeds": ["1"]}, "seeds holds '1', a str"),
    ("plain", {"seeds": [None]}, "seeds holds None, a NoneType"),
    ("plain", {"seeds": [[1], [2, 3]]}, r"rows of different shapes, \[1\] and \[2\]"),
    ("plain", {"seeds": np.array([[1]])}, r"seeds has shape \[1, 1\]; give one seed, or a flat"),
    ("plain", {"seeds": np.array([True])}, "seeds holds True, a bool"),
    ("plain", {"seeds": np.array([1.0])}, "seeds holds 1.0, a float"),
    ("plain", {"seeds": np.array([2**64 - 1], np.uint64)}, "18446744073709551615 does not fit"),
    ("plain", {"seeds": np.array(["1"])}, "seeds holds '1', a str"),
    ("plain", {"seeds": 2**70}, "does not fit in 64 bits"),
    ("plain", {"n": np.array([3])}, r"n=array\(\[3\]\); it takes the number of samples"),
    ("plain", {"n": np.True_}, "it takes the number of samples"),
    ("plain", {"n": "3"}, "n='3'; it takes the number of samples"),
    ("digits", {"seeds": 1, "class_label": {0: 1}}, "class_label holds {0: 1}, a dict"),
    (
        "digits",
        {"seeds": 1, "class_label": itertools.count()},
        "class_label has 2 rows for 1 samples",
    ),
    ("plain", {"z": {0: 1}}, "z holds {0: 1}, a dict"),
    ("plain", {"z": np.array([[1j]])}, "z holds 1j, a complex"),
    ("plain", {"seeds": []}, "no seeds were given"),
    ("plain", {"seeds": range(0)}, "no seeds were given"),
    ("plain", {"n": 0}, "n=0"),
    ("plain", {"n": 2.0}, "n=2.0"),
    ("plain", {"n": True}, "n=True"),
    ("plain", {}, "give seeds or n, from which z is drawn, or z itself"),
    ("plain", {"seeds": 1, "z": Z}, "seeds and z were given; nothing is left for seeds to draw"),
    ("plain", {"n": 1, "z": Z}, "n and z were given; nothing is left for n to draw, so give one"),
    ("mapped", {"n": 1, "w": np.zeros((2, 3))}, "n and w were given; nothing is left for n"),
    ("mapped", {"w": np.zeros((2, 3)), "z": Z[0]}, "z acts in a network that w goes around"),
    ("plain", {"seeds": 1, "n": 1}, "seeds and n were"),
    ("plain", {"seeds": 1, "class_label": 0}, "this model takes no class_label"),
    ("plain", {"seeds": 1, "truncation_psi": 0.5}, "this model takes no truncation_psi"),
    ("plain", {"w": np.zeros((1, 2, 3), np.float32)}, "this model takes no w"),
    ("plain", {"z": np.zeros((3, 5), np.float32)}, r"rows of shape \[5\]"),
    ("plain", {"z": 1.0}, r"z has shape \[\]; it takes \[4\], or \[N, 4\] for N samples"),
    ("plain", {"z": np.zeros((1, 1, 4))}, r"z has shape \[1, 1, 4\]; it takes \[4\], or"),
    ("plain", {"z": [[1, 2, 3, float("nan")]]}, "z in row 0 is nan"),
    ("plain", {"z": [[1, 2, 3, 1e300]]}, "z in row 0 is inf"),
    ("plain", {"z": [[1, 2], [3]]}, "z holds rows of different shapes"),
    ("plain", {"z": [["1", "2", "3", "4"]]}, "z holds '1', a str"),
    ("plain", {"seeds": 1, "format": "gif"}, "format 'gif' is unknown; use one of raw"),
    ("digits", {"seeds": 1}, "class_label is required by this model"),
    ("digits", {"seeds": 1, "class_label": 3}, "class_label in row 0 is 3"),
    ("digits", {"seeds": 1, "class_label": -1}, "class_label in row 0 is -1"),
    ("digits", {"seeds": 1, "class_label": 2**70}, "does not fit in 64 bits"),
    ("digits", {"seeds": 1, "class_label": True}, "class_label holds True, a bool"),
    ("digits", {"seeds": 1, "class_label": 1.0}, "class_label holds 1.0, a float"),
    ("digits", {"seeds": 1, "class_label": np.array([1.0])}, "class_label holds 1.0, a float"),
    ("digits", {"seeds": 1, "class_label": "four"}, "class_label has no class 'four'; .* 0=zero"),
    (
        "digits",
        {"seeds": [1, 2], "class_label": [0, 1, 2]},
        "class_label has 3 rows for 2 samples; give",
    ),
    ("mapped", {"seeds": 1, "truncation_psi": float("nan")}, "truncation_psi in row 0 is nan"),
    ("mapped", {"seeds": 1, "truncation_psi": 2.5}, "truncation_psi in row 0 is 2.5"),
    ("mapped", {"seeds": 1, "truncation_psi": True}, "truncation_psi holds True, a bool"),
    ("mapped", {"w": np.zeros((1, 2, 4), np.float32)}, r"rows of shape \[2, 4\]"),
]


@pytest.mark.parametrize(("model", "arguments", "words"), REFUSED)
def test_what_a_server_would_refuse_does_not_travel(
    info: InfoOf, model: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        asked(info(model), **arguments)


def test_defaults_are_filled_in(info: InfoOf) -> None:
    (request,) = unary_requests(asked(info("mapped"), seeds=[3, 4]))
    assert list(request) == ["seed", "truncation_psi"]
    assert request["seed"].tolist() == [[3], [4]]
    assert request["truncation_psi"].dtype == np.float32
    assert request["truncation_psi"].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("label", [2, np.int32(2), [2, 2], np.array([[2], [2]]), (2, 2)])
def test_one_class_for_all_or_one_for_each(info: InfoOf, label: Any) -> None:
    (request,) = unary_requests(asked(info("digits"), seeds=[0, 2**32 - 1], class_label=label))
    assert request["class_label"].dtype == np.int64
    assert request["class_label"].tolist() == [[2], [2]]


@pytest.mark.parametrize(
    "seeds", [7, np.int64(7), [7], (7,), {7: 8}.keys(), iter([7]), np.array([7])]
)
def test_seeds_come_in_many_shapes(info: InfoOf, seeds: Any) -> None:
    samples = asked(info("plain"), seeds=seeds)
    assert samples.rows.seeds is not None
    assert samples.rows.seeds.tolist() == [7]


class Exchanged:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> object:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Unusable:
    """An array of another library that NumPy cannot have."""

    def __array__(self, *_: object, **__: object) -> object:
        raise TypeError("it lies on another device")


def test_an_array_that_numpy_cannot_have_is_refused(info: InfoOf) -> None:
    with pytest.raises(BadRequest, match="z is no array for NumPy .it lies on another device"):
        asked(info("plain"), z=Unusable())


class Index:
    """An integer of another library."""

    def __index__(self) -> int:
        return 7


@pytest.mark.parametrize(
    "seeds",
    [
        *(np.array([7], dtype) for dtype in ("u1", "i2", "u4", "i4", "u8", ">i8", object)),
        np.array(7),
        Exchanged(np.array([7])),
        Index(),
        [Index()],
        [np.array(7)],
        [np.uint64(7)],
        array.array("q", [7]),
        memoryview(np.array([7]).data),
    ],
)
def test_seeds_of_any_library(info: InfoOf, seeds: Any) -> None:
    samples = asked(info("plain"), seeds=seeds)
    assert samples.rows.seeds is not None
    assert samples.rows.seeds.tolist() == [7]


def test_tensors_of_torch(info: InfoOf) -> None:
    torch = pytest.importorskip("torch")

    def rows(model: str, **arguments: Any) -> Rows:
        return asked(info(model), **arguments).rows

    def seeds_of(seeds: Any) -> list[list[int]]:
        drawn_from = rows("plain", seeds=seeds).seeds
        assert drawn_from is not None
        return [[seed] for seed in drawn_from.tolist()]

    assert seeds_of(torch.tensor([1, 2])) == [[1], [2]]
    assert seeds_of(torch.tensor(5)) == [[5]]
    assert seeds_of([torch.tensor(5), 6]) == [[5], [6]]
    assert rows("plain", seeds=torch.tensor([1, 2], dtype=torch.uint8)).count == 2
    assert rows("plain", n=torch.tensor(3)).count == 3
    labels = rows("digits", seeds=[3, 4], class_label=torch.tensor([1, 2])).inputs["class_label"]
    assert labels.tolist() == [[1], [2]]
    rows_of_z = torch.arange(12.0).reshape(3, 4)
    more = (rows_of_z.clone().requires_grad_(), rows_of_z.t().t())
    for kind in (rows_of_z, rows_of_z.bfloat16(), rows_of_z.half(), rows_of_z.double(), *more):
        for given_z in (kind, list(kind), iter(kind)):
            assert rows("plain", z=given_z).inputs["z"].tolist() == rows_of_z.tolist()
    psi = rows("mapped", seeds=1, truncation_psi=torch.tensor(0.5, requires_grad=True))
    assert psi.inputs["truncation_psi"].tolist() == [[0.5]]
    for bad in (torch.tensor([True]), torch.tensor([1.0]), torch.tensor([[1]])):
        with pytest.raises(BadRequest, match="^seeds h"):
            rows("plain", seeds=bad)


def test_arrays_of_bfloat16(info: InfoOf) -> None:
    half = np.arange(4.0).reshape(1, 4).astype(ml_dtypes.bfloat16)
    given = asked(info("plain"), z=half).rows.inputs["z"]
    assert given.dtype == np.float32
    assert given.tolist() == [[0, 1, 2, 3]]
    with pytest.raises(BadRequest, match="seeds holds 0"):
        asked(info("plain"), seeds=half)


def test_controls_are_read_once(info: InfoOf) -> None:
    labels = (label for label in (1, 2))
    samples = asked(info("digits"), seeds=[3, 4], class_label=labels)
    assert samples.rows.inputs["class_label"].tolist() == [[1], [2]]
    half = asked(info("mapped"), seeds=1, truncation_psi=Fraction(1, 2))
    assert half.rows.inputs["truncation_psi"].tolist() == [[0.5]]


@pytest.mark.parametrize("n", [np.int64(3), np.array(3), Index(), 3])
def test_n_of_any_library(info: InfoOf, n: Any) -> None:
    count = asked(info("plain"), n=n).rows.count
    assert count == (7 if isinstance(n, Index) else 3)


def test_n_draws_seeds_once(info: InfoOf) -> None:
    samples = asked(info("plain"), n=20)
    assert samples.rows.seeds is not None
    assert len(set(samples.rows.seeds.tolist())) == 20
    sent = [request["seed"] for request in unary_requests(samples)]
    assert np.concatenate(sent)[:, 0].tolist() == samples.rows.seeds.tolist()


def test_latents_of_another_type_are_brought_to_float32(info: InfoOf) -> None:
    samples = asked(info("plain"), z=[[1, 2, 3, 4.5]])
    (request,) = unary_requests(samples)
    assert request["z"].dtype == np.float32
    assert samples.rows.seeds is None


def test_format_is_sent_only_when_it_is_not_raw(info: InfoOf) -> None:
    (raw,) = unary_requests(asked(info("plain"), seeds=1))
    assert "format" not in raw
    (png,) = unary_requests(asked(info("plain"), seeds=1, format="png"))
    assert png["format"].tolist() == [[b"png"]]


def test_a_result_over_the_limit_is_refused_before_seeds_are_drawn(info: InfoOf) -> None:
    with pytest.raises(BadRequest, match=r"10000000 samples of 6 x 5 x 3 .* Use stream"):
        asked(info("plain"), n=10_000_000, max_bytes=1000)
    with pytest.raises(BadRequest, match="more than one call takes"):
        asked(info("plain"), n=10**12)
    with pytest.raises(BadRequest, match=f"it takes {MAX_SAMPLES}"):
        asked(info("plain"), seeds=itertools.count())


@pytest.mark.parametrize(
    ("model", "argument", "row", "max_bytes", "words"),
    [
        ("plain", "z", itertools.count(), 90 * 100, r"101 samples of .* Use stream"),
        ("plain", "z", Z[0], 90 * 100, r"101 samples of .* Use stream"),
        ("plain", "z", Z[0].tolist(), 90 * 100, r"101 samples of .* Use stream"),
        ("mapped", "w", np.zeros((2, 3)), 30 * 100, r"101 samples of .* Use stream"),
        ("plain", "seeds", 1, 90 * 100, r"101 samples of .* Use stream"),
        ("wide", "z", Z[0], None, "z gives more than 4096 rows; give an array, or fewer a call"),
        ("plain", "w", Z[0], None, "this model takes no w"),
    ],
)
def test_no_more_is_read_than_can_be_used(
    info: InfoOf, model: str, argument: str, row: Any, max_bytes: int | None, words: str
) -> None:
    taken = 0

    def rows() -> Iterator[object]:
        nonlocal taken
        while True:
            taken += 1
            yield row

    wide = make_spec([z(2**16)], [image(6, 5)])
    given: dict[str, Any] = {argument: rows()}
    of = replace(info("plain"), spec=wide) if model == "wide" else info(model)
    with pytest.raises(BadRequest, match=words):
        asked(of, **given, max_bytes=max_bytes)
    assert taken <= (4097 if model == "wide" else 101)


@given(count=st.integers(1, 60), size=st.integers(1, 17))
def test_parts_cover_the_samples_in_order(info: InfoOf, count: int, size: int) -> None:
    model = info("digits", max_batch_size=size)
    labels = [seed % 3 for seed in range(count)]
    samples = asked(model, seeds=range(count), class_label=labels)
    requests = unary_requests(samples)
    for request in requests:
        rows_from_request(model.spec, request, most=size)
    assert np.concatenate([r["seed"] for r in requests])[:, 0].tolist() == list(range(count))
    assert np.concatenate([r["class_label"] for r in requests])[:, 0].tolist() == labels


@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    start=st.integers(0, 39),
    one_class=st.booleans(),
)
def test_stream_requests_mean_the_samples_in_order(
    info: InfoOf, seeds: Any, start: int, one_class: bool
) -> None:
    labels = 1 if one_class else [seed % 3 for seed in seeds]
    model = info("digits")
    samples = asked(model, seeds=seeds, class_label=labels)
    streams = [
        stream_from_request(model.spec, request, max_batch_size=model.max_batch_size)
        for request in stream_requests(samples, start)
    ]
    got = [row for stream in streams for row in stream.tensors["seed"][:, 0].tolist()]
    assert got == seeds[start:]
    classes = [row for stream in streams for row in stream.tensors["class_label"][:, 0].tolist()]
    assert classes == np.broadcast_to(labels, len(seeds)).tolist()[start:]


def test_a_range_travels_as_its_first_seed_and_a_count(info: InfoOf) -> None:
    samples = asked(info("plain"), seeds=range(5, 10_000))
    requests = list(stream_requests(samples, 0, chunk_size=16))
    assert [r["count"].tolist() for r in requests] == [[4096], [4096], [1803]]
    assert [r["seed"].tolist() for r in requests] == [[5], [4101], [8197]]
    assert requests[0]["chunk_size"].tolist() == [16]


def test_latents_and_formats_of_a_stream(info: InfoOf) -> None:
    samples = asked(info("plain"), z=Z, format="webp")
    (request,) = stream_requests(samples)
    assert request["z"].shape == (3, 4)
    assert request["format"].tolist() == [b"webp"]


def test_a_list_that_is_too_long_is_refused_before_it_is_read(info: InfoOf) -> None:
    unread = [Failing()] * 5000
    for unread_too in ({"z": unread}, {"seeds": unread}):
        with pytest.raises(BadRequest, match=r"5000 samples of 6 x 5 x 3 .* Use stream"):
            asked(info("plain"), max_bytes=9000, **unread_too)


@pytest.mark.parametrize("size", [0, -1, 4097, True, 1.5, "8"])
def test_chunk_sizes_that_are_refused(size: int) -> None:
    with pytest.raises(BadRequest, match="it takes an integer from 1 to 4096"):
        check_chunk_size(size)
