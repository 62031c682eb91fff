import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.clients import BadRequest
from latentry.clients.requests import (
    MAX_SAMPLES,
    Arguments,
    check_chunk_size,
    samples_from_arguments,
    stream_requests,
    unary_requests,
)
from latentry.serving.streaming import stream_from_request
from latentry.serving.wire import rows_from_request

Z = np.zeros((3, 4), np.float32)

REFUSED = [
    ("plain", {"seeds": -1}, "seed -1 is out of range"),
    ("plain", {"seeds": 2**32}, "seed 4294967296 is out of range"),
    ("plain", {"seeds": range(2**32 - 1, 2**32 + 1)}, "seed 4294967296 is out of range"),
    ("plain", {"seeds": 1.0}, "seed 1.0 is a float"),
    ("plain", {"seeds": True}, "seed True is a bool"),
    ("plain", {"seeds": [1, True]}, "seed True is a bool"),
    ("plain", {"seeds": "12"}, "seed '12' is a str"),
    ("plain", {"seeds": []}, "no seeds were given"),
    ("plain", {"seeds": range(0)}, "no seeds were given"),
    ("plain", {"n": 0}, "n=0"),
    ("plain", {"n": 2.0}, "n=2.0"),
    ("plain", {"n": True}, "n=True"),
    ("plain", {}, "exactly one of seeds, n, z, w must be given; none was"),
    ("plain", {"seeds": 1, "z": Z}, "seeds and z were"),
    ("plain", {"seeds": 1, "n": 1}, "seeds and n were"),
    ("plain", {"seeds": 1, "class_label": 0}, "this model takes no class_label"),
    ("plain", {"seeds": 1, "truncation_psi": 0.5}, "this model takes no truncation_psi"),
    ("plain", {"w": np.zeros((1, 2, 3), np.float32)}, "this model takes no w"),
    ("plain", {"z": np.zeros((3, 5), np.float32)}, r"rows of shape \[5\]"),
    ("plain", {"z": np.zeros(4, np.float32)}, r"rows of shape \[\]"),
    ("plain", {"z": [[1, 2, 3, float("nan")]]}, "z in row 0 is nan"),
    ("plain", {"z": [[1, 2, 3, 1e300]]}, "z in row 0 is inf"),
    ("plain", {"z": [[1, 2], [3]]}, "z holds"),
    ("plain", {"z": [["1", "2", "3", "4"]]}, "z holds '1', a str"),
    ("plain", {"seeds": 1, "format": "gif"}, "format 'gif' is unknown; use one of raw"),
    ("digits", {"seeds": 1}, "class_label is required by this model"),
    ("digits", {"seeds": 1, "class_label": 3}, "class_label in row 0 is 3"),
    ("digits", {"seeds": 1, "class_label": -1}, "class_label in row 0 is -1"),
    ("digits", {"seeds": 1, "class_label": 2**70}, "does not fit in 64 bits"),
    ("digits", {"seeds": 1, "class_label": True}, "class_label holds True, a bool"),
    ("digits", {"seeds": 1, "class_label": 1.0}, "class_label holds 1.0, a float"),
    ("digits", {"seeds": 1, "class_label": np.array([1.0])}, "class_label holds 1.0, a float"),
    ("digits", {"seeds": 1, "class_label": "one"}, "class_label holds 'one', a str"),
    ("digits", {"seeds": [1, 2], "class_label": [0, 1, 2]}, r"shape \[3\] for 2 samples"),
    ("mapped", {"seeds": 1, "truncation_psi": float("nan")}, "truncation_psi in row 0 is nan"),
    ("mapped", {"seeds": 1, "truncation_psi": 2.5}, "truncation_psi in row 0 is 2.5"),
    ("mapped", {"seeds": 1, "truncation_psi": True}, "truncation_psi holds True, a bool"),
    ("mapped", {"w": np.zeros((1, 2, 4), np.float32)}, r"rows of shape \[2, 4\]"),
]


@pytest.mark.parametrize(("model", "arguments", "words"), REFUSED)
def test_what_a_server_would_refuse_does_not_travel(info, model, arguments, words):
    with pytest.raises(BadRequest, match=words):
        samples_from_arguments(info(model), Arguments(**arguments))


def test_defaults_are_filled_in(info):
    (request,) = unary_requests(samples_from_arguments(info("mapped"), Arguments(seeds=[3, 4])))
    assert list(request) == ["seed", "truncation_psi"]
    assert request["seed"].tolist() == [[3], [4]]
    assert request["truncation_psi"].dtype == np.float32
    assert request["truncation_psi"].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("label", [2, np.int32(2), [2, 2], np.array([[2], [2]]), (2, 2)])
def test_one_class_for_all_or_one_for_each(info, label):
    arguments = Arguments(seeds=[0, 2**32 - 1], class_label=label)
    (request,) = unary_requests(samples_from_arguments(info("digits"), arguments))
    assert request["class_label"].dtype == np.int64
    assert request["class_label"].tolist() == [[2], [2]]


@pytest.mark.parametrize("seeds", [7, np.int64(7), [7], (7,), {7}, iter([7]), np.array([7])])
def test_seeds_come_in_many_shapes(info, seeds):
    samples = samples_from_arguments(info("plain"), Arguments(seeds=seeds))
    assert samples.seeds is not None
    assert samples.seeds.tolist() == [7]


def test_n_draws_seeds_once(info):
    samples = samples_from_arguments(info("plain"), Arguments(n=20))
    assert samples.seeds is not None
    assert len(set(samples.seeds.tolist())) == 20
    sent = [request["seed"] for request in unary_requests(samples)]
    assert np.concatenate(sent)[:, 0].tolist() == samples.seeds.tolist()


def test_latents_of_another_type_are_brought_to_float32(info):
    samples = samples_from_arguments(info("plain"), Arguments(z=[[1, 2, 3, 4.5]]))
    (request,) = unary_requests(samples)
    assert request["z"].dtype == np.float32
    assert samples.seeds is None


def test_format_is_sent_only_when_it_is_not_raw(info):
    (raw,) = unary_requests(samples_from_arguments(info("plain"), Arguments(seeds=1)))
    assert "format" not in raw
    (png,) = unary_requests(samples_from_arguments(info("plain"), Arguments(seeds=1, format="png")))
    assert png["format"].tolist() == [[b"png"]]


def test_a_result_over_the_limit_is_refused_before_seeds_are_drawn(info):
    with pytest.raises(BadRequest, match=r"10000000 images of 6 x 5 x 3 .* Use stream"):
        samples_from_arguments(info("plain"), Arguments(n=10_000_000), max_bytes=1000)
    with pytest.raises(BadRequest, match="more than one call takes"):
        samples_from_arguments(info("plain"), Arguments(n=10**12))
    with pytest.raises(BadRequest, match=f"it takes {MAX_SAMPLES}"):
        samples_from_arguments(info("plain"), Arguments(seeds=itertools.count()))


@given(count=st.integers(1, 60), size=st.integers(1, 17))
def test_parts_cover_the_samples_in_order(info, count, size):
    model = info("digits", max_batch_size=size)
    labels = [seed % 3 for seed in range(count)]
    samples = samples_from_arguments(model, Arguments(seeds=range(count), class_label=labels))
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
def test_stream_requests_mean_the_samples_in_order(info, seeds, start, one_class):
    labels = 1 if one_class else [seed % 3 for seed in seeds]
    model = info("digits")
    samples = samples_from_arguments(model, Arguments(seeds=seeds, class_label=labels))
    asked = [
        stream_from_request(model.spec, request, max_batch_size=model.max_batch_size)
        for request in stream_requests(samples, start)
    ]
    got = [row for stream in asked for row in stream.tensors["seed"][:, 0].tolist()]
    assert got == seeds[start:]
    classes = [row for stream in asked for row in stream.tensors["class_label"][:, 0].tolist()]
    assert classes == np.broadcast_to(labels, len(seeds)).tolist()[start:]


def test_a_range_travels_as_its_first_seed_and_a_count(info):
    samples = samples_from_arguments(info("plain"), Arguments(seeds=range(5, 10_000)))
    requests = list(stream_requests(samples, 0, chunk_size=16))
    assert [r["count"].tolist() for r in requests] == [[4096], [4096], [1803]]
    assert [r["seed"].tolist() for r in requests] == [[5], [4101], [8197]]
    assert requests[0]["model"].tolist() == [b"plain"]
    assert requests[0]["chunk_size"].tolist() == [16]


def test_latents_and_formats_of_a_stream(info):
    samples = samples_from_arguments(info("plain"), Arguments(z=Z, format="webp"))
    (request,) = stream_requests(samples)
    assert request["z"].shape == (3, 4)
    assert request["format"].tolist() == [b"webp"]


@pytest.mark.parametrize("size", [0, -1, 4097, True, 1.5, "8"])
def test_chunk_sizes_that_are_refused(size):
    with pytest.raises(BadRequest, match="it takes an integer from 1 to 4096"):
        check_chunk_size(size)
