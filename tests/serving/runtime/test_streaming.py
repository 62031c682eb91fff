from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentry.contract.errors import BadRequest
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import MAX_STREAMED_SAMPLES, Format, most_streamed_samples
from latentry.serving.runtime.streaming import stream_from_request, text_from_tensor

SPEC = GeneratorSpec.model_validate(
    {
        "inputs": [{"role": "z", "shape": [4]}, {"role": "class_label", "classes": ["a", "b"]}],
        "image": {"height": 4, "width": 4, "channels": 1},
    }
)
LABEL = np.array([[1]])


def ask(**tensors: object) -> dict[str, Any]:
    return {"model": np.array([b"m"], object), "class_label": LABEL} | {
        name: np.asarray(value) for name, value in tensors.items()
    }


@given(
    st.integers(0, 1000),
    st.integers(1, 300),
    st.none() | st.integers(1, 100),
    st.integers(1, 40),
)
def test_chunks_hold_every_sample_once_in_order(
    first: int, count: int, chunk_size: int | None, most: int
) -> None:
    more = {} if chunk_size is None else {"chunk_size": [chunk_size]}
    stream = stream_from_request(SPEC, ask(seed=[first], count=[count], **more), max_batch_size=32)
    chunks = list(stream.chunks(most))
    seeds = np.concatenate([tensors["seed"] for _, tensors in chunks])[:, 0]
    assert seeds.tolist() == list(range(first, first + count))
    sizes = [len(tensors["seed"]) for _, tensors in chunks]
    assert [index for index, _ in chunks] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert max(sizes) <= min(most, chunk_size or most)
    assert all(len(tensors["class_label"]) == len(tensors["seed"]) for _, tensors in chunks)


def test_without_a_chunk_size_the_first_chunk_is_small() -> None:
    stream = stream_from_request(SPEC, ask(seed=[0], count=[100]), max_batch_size=32)
    assert [len(tensors["seed"]) for _, tensors in stream.chunks(32)] == [8, 32, 32, 28]


def test_each_sample_may_have_its_own_controls() -> None:
    stream = stream_from_request(SPEC, ask(seed=[5, 3], class_label=[[0], [1]]), max_batch_size=32)
    (_, tensors), *_ = stream.chunks(8)
    assert tensors["seed"].tolist() == [[5], [3]]
    assert tensors["class_label"].tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (ask(), "exactly one of seed, z must be given; none was"),
        (ask(seed=np.zeros(0, np.int64)), r"seed has shape \[0\]"),
        (ask(seed=[[1]]), r"seed has shape \[1, 1\]; a stream takes \[n\]"),
        (ask(seed=[-1]), "seed in row 0 is -1"),
        (ask(seed=[0], count=[0]), "asks for 0 samples; one request takes 1 to 4096"),
        (ask(seed=[0], count=[5000]), "asks for 5000 samples"),
        (ask(seed=[2**32 - 2], count=[3]), "3 seeds from 4294967294 run past 4294967295"),
        (ask(seed=[0, 1], count=[2]), "count goes with one seed"),
        (ask(z=np.zeros((2, 4), np.float32), count=[2]), "count goes with seed"),
        (ask(z=np.zeros((2, 5), np.float32)), r"z has rows of shape \[5\]"),
        (ask(seed=[0], chunk_size=[0]), r"chunk_size is \[0\]; give one integer, 1 to 4096"),
        (ask(seed=[0], class_label=[[2]]), "class_label in row 0 is 2"),
        (ask(seed=[0, 1, 2], class_label=[[0], [1]]), "first dimension is 1 or 3, one a sample"),
        (ask(seed=[0], truncation_psi=[[1.0]]), "takes no truncation_psi"),
        (ask(seed=[0], format=np.array([b"gif"], object)), "format 'gif' is unknown"),
        (ask(seed=[0], format=np.array([b"\xff"], object)), "is no UTF-8 text"),
        (
            ask(seed=[0], format=np.array([b"x" * 2**20], object)),
            "format holds 1,048,576 bytes; it takes at most 256",
        ),
        (ask(seed=np.arange(100_000)), "asks for 100000 samples"),
        # One row that would be repeated for every sample.
        (ask(z=np.zeros((1, 10**6), np.float32)), r"z has rows of shape \[1000000\]"),
        (ask(z=np.zeros((4097, 4), np.float32)), "asks for 4097 samples"),
        (ask(seed=[0], class_label=np.zeros((1, 10**6), np.int64)), "class_label has rows of sh"),
        (ask(seed=[0], class_label=np.array(1)), "class_label has no rows"),
        (ask(seed=[0], w=np.zeros((1, 3), np.float32)), "takes no w; it takes seed, z, class"),
    ],
)
def test_refusals(request_: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        stream_from_request(SPEC, request_, max_batch_size=32)


def test_a_request_is_bounded_in_samples_and_bytes() -> None:
    large = GeneratorSpec.model_validate(
        {
            "inputs": [
                {"role": "z", "shape": [4]},
                {"role": "w", "shape": [18, 512], "w_avg": [0.0] * 512},
                {"role": "truncation_psi"},
            ],
            "image": {"height": 256, "width": 256, "channels": 3},
        }
    )
    assert most_streamed_samples(SPEC, "seed", Format.RAW, 32) == MAX_STREAMED_SAMPLES
    for latent, image_format, most_batch, most in (
        *(("seed", Format.PNG, 32, 42), ("seed", Format.FLOAT, 4, 8)),
        ("seed", Format.FLOAT, 32, 32),  # one largest batch, whatever it takes
        ("z", Format.RAW, 1, 42),
    ):
        assert most_streamed_samples(large, latent, image_format, most_batch) == most
    small = large.model_copy(
        update={"image": large.image.model_copy(update={"height": 8, "width": 8})}
    )
    assert most_streamed_samples(small, "seed", Format.RAW, 1) == MAX_STREAMED_SAMPLES
    assert most_streamed_samples(small, "w", Format.RAW, 1) == 227  # 36 KiB each on the way in


def test_two_texts_are_not_one() -> None:
    with pytest.raises(BadRequest, match="model takes one text, 2 were given"):
        text_from_tensor("model", np.array([b"a", b"b"], object))
