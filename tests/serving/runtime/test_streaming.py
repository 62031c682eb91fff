from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from specs import classes, image, make_spec, psi, stages_of_stylegan, w, z

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import MAX_STREAMED_SAMPLES, most_streamed_samples
from latentry.serving.runtime.streaming import stream_from_request, text_from_tensor

SPEC = make_spec([z(4), classes("a", "b")], [image(4, 4, 1)])
LABEL = np.array([[1]])


def ask(**tensors: object) -> dict[str, Any]:
    return {"class_label": LABEL} | {name: np.asarray(value) for name, value in tensors.items()}


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
        (ask(), "seed is required, as it draws z; or give z itself"),
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
        (
            ask(seed=[0], truncation_psi=[[1.0]]),
            "takes no truncation_psi; it takes seed, z, class_label",
        ),
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
        (ask(seed=[0], z=np.zeros((1, 4), np.float32)), "seed and z were given; nothing is left"),
        (ask(seed=[0], model=np.array([b"m"], object)), "takes no model; it takes seed, z, class"),
        (ask(seed=[0], w=np.zeros((1, 3), np.float32)), "takes no w; it takes seed, z, class"),
    ],
)
def test_refusals(request_: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        stream_from_request(SPEC, request_, max_batch_size=32)


def test_a_request_is_bounded_in_samples_and_bytes() -> None:
    def stylegan(size: int) -> GeneratorSpec:
        return make_spec(
            [z(4), w(18, 512), psi()],
            [image(size, size)],
            stages_of_stylegan([0.0] * 512, mapping_takes=["z"]),
        )

    large, small = stylegan(256), stylegan(8)
    assert most_streamed_samples(SPEC, ["class_label"], Format.RAW, 32) == MAX_STREAMED_SAMPLES
    for given_, image_format, most_batch, most in (
        *(([], Format.PNG, 32, 42), ([], Format.FLOAT, 4, 8)),
        ([], Format.FLOAT, 32, 32),  # one largest batch, whatever it takes
        (["z"], Format.RAW, 1, 42),
    ):
        assert most_streamed_samples(large, given_, image_format, most_batch) == most
    assert most_streamed_samples(small, [], Format.RAW, 1) == MAX_STREAMED_SAMPLES
    # 36 KiB each on the way in
    assert most_streamed_samples(small, ["w", "truncation_psi"], Format.RAW, 1) == 227


PHOTO = {"name": "photo", "kind": "picture", "height": 8, "width": 6, "channels": 3}
ALPHA = {"name": "alpha", "kind": "mask", "height": 8, "width": 6}
EDITOR = make_spec([PHOTO, ALPHA], [image(8, 6), {**ALPHA, "name": "seen"}])
PAINTER = make_spec([z(4), PHOTO], [image(8, 6)])


def pictures(count: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.RandomState(0).randint(0, 256, (count, *shape)).astype(np.uint8)


def asked(**tensors: object) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in tensors.items()}


def test_without_seeds_the_rows_count() -> None:
    photos, mask = pictures(20, 8, 6, 3), pictures(1, 8, 6)
    request = asked(photo=photos, alpha=mask)
    stream = stream_from_request(EDITOR, request, max_batch_size=8)
    assert stream.count == 20
    chunks = list(stream.chunks(8))
    assert [index for index, _ in chunks] == [0, 8, 16]
    np.testing.assert_array_equal(np.concatenate([t["photo"] for _, t in chunks]), photos)
    for _, tensors in chunks:
        assert tensors.keys() == {"photo", "alpha"}
        assert tensors["alpha"].shape == tensors["photo"].shape[:3]
        assert (tensors["alpha"] == mask).all()


def test_a_picture_for_all_seeds_goes_with_every_chunk() -> None:
    photo = pictures(1, 8, 6, 3)
    stream = stream_from_request(
        PAINTER, asked(seed=[3], count=[40], photo=photo), max_batch_size=16
    )
    chunks = list(stream.chunks(16))
    assert [len(tensors["photo"]) for _, tensors in chunks] == [8, 16, 16]
    assert all((tensors["photo"] == photo).all() for _, tensors in chunks)


@pytest.mark.parametrize(
    ("spec", "request_", "match"),
    [
        (EDITOR, asked(seed=[1], photo=pictures(1, 8, 6, 3)), "takes no seed; it takes photo, al"),
        (EDITOR, asked(photo=pictures(2, 8, 6, 3)), "alpha is required by this model; it takes m"),
        (
            EDITOR,
            asked(photo=pictures(3, 8, 6, 3), alpha=pictures(2, 8, 6)),
            "its first dimension is 1 or 3, one a sample",
        ),
        (
            EDITOR,
            asked(photo=pictures(2, 8, 6, 3), alpha=pictures(2, 8, 6), count=[2]),
            "count goes with seed",
        ),
        (EDITOR, asked(photo=pictures(2, 9, 6, 3)), r"photo has rows of shape \[9, 6, 3\]"),
        (EDITOR, asked(photo=np.zeros((1, 8, 6, 3))), "photo has dtype float64; it takes picture"),
        (EDITOR, {}, "carries no tensors; send at least one of photo, alpha, format"),
        (PAINTER, asked(photo=pictures(2, 8, 6, 3)), "seed is required, as it draws z"),
    ],
)
def test_refusals_of_pictures(spec: GeneratorSpec, request_: dict[str, Any], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        stream_from_request(spec, request_, max_batch_size=32)


def test_pictures_that_go_in_bound_a_request_too() -> None:
    large = {"name": "photo", "kind": "picture", "height": 256, "width": 256, "channels": 3}
    spec = make_spec([large], [{"name": "features", "kind": "vector", "size": 4}])
    assert most_streamed_samples(spec, ["photo"], Format.RAW, 4) == 42
    with pytest.raises(BadRequest, match="asks for 43 samples; one request takes 1 to 42"):
        stream_from_request(spec, asked(photo=np.zeros((43, 256, 256, 3), np.uint8)),
                            max_batch_size=4)  # fmt: skip
    stream = stream_from_request(
        spec, asked(photo=np.zeros((42, 256, 256, 3), np.uint8)), max_batch_size=4
    )
    assert stream.count == 42


def test_what_is_repeated_for_every_sample_counts_as_often() -> None:
    """One row of a megabyte and 4,096 seeds are 4 GiB of requests."""
    vector = {"name": "condition", "kind": "vector", "size": 65536}
    spec = make_spec([z(4), vector], [image(4, 4, 1)])
    request = asked(seed=[0], count=[4096], condition=np.zeros((1, 65536), np.float32))
    with pytest.raises(BadRequest, match="asks for 4096 samples; one request takes 1 to 32"):
        stream_from_request(spec, request, max_batch_size=32)


def test_two_texts_are_not_one() -> None:
    with pytest.raises(BadRequest, match="format takes one text, 2 were given"):
        text_from_tensor("format", np.array([b"a", b"b"], object))
