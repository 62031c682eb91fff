import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from specs import image

from latentry.contract.errors import BadRequest
from latentry.contract.images import decode_image, uint8_from_sample
from latentry.contract.kinds.formats import FILE_FORMATS, Format
from latentry.contract.kinds.kind import InputKind, TensorType
from latentry.contract.kinds.picture import PixelsInput, are_levels_near
from latentry.contract.kinds.registry import input_from_any, output_from_any

ROWS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
RGB = input_from_any(image(4, 5))
GREY = input_from_any(image(4, 5, 1))


def file_of(pixels: np.ndarray[Any, Any], image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, lossless=True)
    return buffer.getvalue()


def rows_of(value: Any, most: int = 2) -> tuple[np.ndarray[Any, Any], bool]:
    rows, is_one = RGB.rows_from_value(value, most=most)
    RGB.check(rows)
    return rows, is_one


def test_one_picture_however_it_is_held(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file_of(ROWS[0]))
    for value in (
        *(ROWS[0], ROWS[0].astype(np.int64), ROWS[0].tolist(), list(ROWS[0]), iter(ROWS[0])),
        *(
            Image.fromarray(ROWS[0]),
            tmp_path / "a.png",
            file_of(ROWS[0]),
            bytearray(file_of(ROWS[0])),
        ),
        file_of(ROWS[0], "WEBP"),
    ):
        for most in (1, 2, 100):
            if not hasattr(value, "__next__"):
                rows, is_one = rows_of(value, most)
                assert is_one
                np.testing.assert_array_equal(rows, ROWS[:1])


def test_several_pictures_however_they_are_held(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, pixels in zip(paths, ROWS, strict=True):
        path.write_bytes(file_of(pixels))
    pictures = [Image.fromarray(pixels) for pixels in ROWS]
    for value in (
        *(ROWS, list(ROWS), ROWS.tolist(), iter(ROWS), paths, tuple(paths), iter(paths), pictures),
        *(
            [path.read_bytes() for path in paths],
            [paths[0], ROWS[1]],
            [pictures[0], file_of(ROWS[1])],
        ),
    ):
        rows, is_one = rows_of(value)
        assert not is_one
        np.testing.assert_array_equal(rows, ROWS)
    rows, is_one = rows_of([paths[0]])
    assert (len(rows), is_one) == (1, False)


def test_pictures_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for tensor in (torch.from_numpy(ROWS), torch.from_numpy(ROWS).long()):
        np.testing.assert_array_equal(rows_of(tensor)[0], ROWS)
        assert rows_of(tensor[0])[1]
    with pytest.raises(BadRequest, match=r"rows of shape \[3, 4, 5\]; it takes rows of shape \[4"):
        rows_of(torch.from_numpy(ROWS).permute(0, 3, 1, 2))


def test_no_more_pictures_are_opened_than_are_asked_for() -> None:
    files = [Image.fromarray(ROWS[0])] * 50
    assert len(RGB.rows_from_value(files, most=8)[0]) == 9


def test_the_last_axis_of_a_grey_picture_may_be_left_out() -> None:
    for value, count in ((ROWS[0, :, :, 0], 1), (ROWS[:, :, :, 0], 2), (ROWS[:, :, :, :1], 2)):
        rows, is_one = GREY.rows_from_value(value, most=2)
        assert rows.shape == (count, 4, 5, 1)
        assert is_one == (count == 1)
        np.testing.assert_array_equal(rows[0, :, :, 0], ROWS[0, :, :, 0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "a.png",
            "image is a text; for a file give a pathlib.Path, or its bytes; it takes pictures",
        ),
        (["a.png"], "image holds 'a.png', a str; it takes pictures of 4 x 5 x 3, uint8"),
        (ROWS / 255, "image holds 0.0, a float; it takes pictures of 4 x 5 x 3, uint8"),
        (ROWS.astype(int) - 1, "image holds numbers from -1 to 118; it takes pictures"),
        (ROWS.astype(int) + 200, "image holds numbers from 200 to 319"),
        (ROWS[:, :3], r"image has rows of shape \[3, 5, 3\]; it takes rows of shape \[4, 5, 3\]"),
        (ROWS[0, 0], r"image has rows of shape \[3\]"),
        (b"", "image cannot be read as PNG, JPEG, WebP or BMP"),
        (b"not a picture", "image cannot be read as PNG, JPEG, WebP or BMP"),
        (
            Path("/nowhere.png"),
            r"image \(/nowhere.png\) cannot be read as PNG, JPEG, WebP or BMP: No such",
        ),
        (
            [Path("/nowhere.png")],
            r"image \(/nowhere.png\) cannot be read as PNG, JPEG, WebP or BMP: No",
        ),
        (
            file_of(np.zeros((5, 4, 3), np.uint8)),
            "image is a picture of 5 x 4; it takes pictures of 4 x 5 x 3, uint8; scale it, or ask",
        ),
        (
            [Image.new("RGB", (5, 4)), ROWS[0, :3]],
            "image holds pictures of several sizes; one request has one",
        ),
    ],
)
def test_what_is_no_picture(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        rows_of(value)


def test_a_text_is_a_path_or_several() -> None:
    assert RGB.value_from_text("a.png") == Path("a.png")
    assert RGB.value_from_text("a.png,b c.jpg") == [Path("a.png"), Path("b c.jpg")]
    for text in ("", "a.png,", ",a.png"):
        with pytest.raises(BadRequest, match=r"holds '.*'; give a picture's path, or a\.png,b"):
            RGB.value_from_text(text)


def test_a_picture_has_no_default_must_matter_and_is_told_by_its_hash() -> None:
    assert RGB.default_row() is None
    assert RGB.must_matter
    assert RGB.text(ROWS[0]) != RGB.text(ROWS[1])
    assert RGB.text(ROWS[0]) == RGB.text(np.asfortranarray(ROWS[0]))
    assert RGB.stem(ROWS[0]) == ""


def test_examples_are_different_pictures() -> None:
    rows = input_from_any(image(16, 16)).examples(4)
    assert len({row.tobytes() for row in rows}) == 4
    assert all(row.std() > 10 for row in rows)
    np.testing.assert_array_equal(rows[:2], input_from_any(image(16, 16)).examples(2))


RANGES = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-2.1, 2.6)])


@given(RANGES)
def test_levels_that_go_through_a_network_come_back(value_range: tuple[float, float]) -> None:
    torch = pytest.importorskip("torch")
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    taken = input_from_any(image(16, 16, 1, range=value_range)).to_network(levels)
    assert taken.shape == (1, 1, 16, 16)
    assert taken.dtype == torch.float32
    low, high = value_range
    np.testing.assert_allclose([taken.min(), taken.max()], [low, high], rtol=1e-6)
    given_back = output_from_any(image(16, 16, 1, range=value_range)).from_network(taken)
    assert torch.equal(given_back["image"], levels)
    assert given_back["image.sample"] is taken


@given(RANGES, st.floats(-10, 10, width=32))
def test_values_beyond_the_range_are_black_and_white(
    value_range: tuple[float, float], value: float
) -> None:
    torch = pytest.importorskip("torch")
    low, high = value_range
    beyond = torch.tensor([low - abs(value), high + abs(value)]).reshape(1, 1, 1, 2)
    levels = output_from_any(image(1, 2, 1, range=value_range)).from_network(beyond)["image"]
    assert levels.flatten().tolist() == [0, 255]


def test_the_usual_range_is_rounded_as_stylegan_rounds() -> None:
    torch = pytest.importorskip("torch")
    sample = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    levels = output_from_any(image(64, 64)).from_network(sample)["image"]
    np.testing.assert_array_equal(levels.numpy(), uint8_from_sample(sample.numpy()))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_how_a_picture_travels(channels: int) -> None:
    item = output_from_any(image(4, 5, channels))
    raw = {"image": TensorType(np.uint8, (4, 5, channels))}
    assert item.tensors(Format.RAW) == raw
    sample = {"image.sample": TensorType(np.float32, (channels, 4, 5))}
    assert item.tensors(Format.FLOAT) == {**raw, **sample}
    for image_format in FILE_FORMATS:
        assert item.tensors(image_format) == {"image.encoded": TensorType(np.object_, (1,))}
        assert item.file_format(image_format) is image_format
    pixels = np.arange(20 * channels, dtype=np.uint8).reshape(4, 5, channels)
    for lossless in (Format.PNG, Format.WEBP):
        decoded = decode_image(item.encode(pixels, lossless), channels)
        if channels != 4:  # WebP does not keep the colour of what is not seen
            np.testing.assert_array_equal(decoded, pixels)


def test_a_constant_picture_is_found() -> None:
    rows = np.arange(3 * 20 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    rows[1] = (1, 2, 3)  # one colour, though its channels differ
    assert output_from_any(image(4, 5)).find_constant(rows).tolist() == [False, True, False]
    one_pixel = np.zeros((2, 1, 1, 3), np.uint8)
    assert not output_from_any(image(1, 1)).find_constant(one_pixel).any()


@pytest.mark.parametrize(
    ("shape", "elements", "levels", "is_same"),
    [
        ((8, 8, 1), 0, 0, True),
        ((8, 8, 1), 1, 1, True),
        ((8, 8, 1), 1, -1, True),
        ((8, 8, 1), 1, 2, False),
        ((8, 8, 1), 2, 1, False),
        ((8, 32, 32, 1), 8, 1, True),
        ((8, 32, 32, 1), 8, 2, False),
        ((8, 32, 32, 1), 9, -1, False),
    ],
)
def test_rounding_moves_one_element_in_a_thousand_by_one_level(
    shape: tuple[int, ...], elements: int, levels: int, is_same: bool
) -> None:
    images = np.full(shape, 128, np.uint8)
    others = images.copy()
    others.reshape(-1)[:elements] = 128 + levels
    assert are_levels_near(images, others) is is_same
    assert are_levels_near(others, images) is is_same


def test_black_and_white_are_far_apart() -> None:
    black, white = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1), np.uint8)
    white[0, 0] = 255  # which is one level away where differences wrap
    assert not are_levels_near(black, white)
    assert not are_levels_near(white, black)


BIG = np.random.RandomState(0).randint(0, 256, (2, 9, 8, 3)).astype(np.uint8)


def resized_rows(item: InputKind, value: Any, most: int) -> tuple[np.ndarray[Any, Any], bool]:
    assert isinstance(item, PixelsInput)
    return item.resized_rows(value, most=most)


def scaled(pixels: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (BIG, False),
        ([file_of(BIG[0]), file_of(BIG[1])], False),
        ([Image.fromarray(BIG[0]), bytearray(file_of(BIG[1]))], False),
        (BIG[0], True),
        (file_of(BIG[0]), True),
    ],
)
def test_pictures_are_scaled_where_that_is_asked(value: Any, is_one: bool) -> None:
    with pytest.raises(
        BadRequest, match=r"takes rows of shape|ask for that \(resize=True, --resize, in a"
    ):
        rows_of(value)
    rows, found = resized_rows(RGB, value, most=2)
    assert found is is_one
    np.testing.assert_array_equal(rows, [scaled(one, 4, 5) for one in BIG[: len(rows)]])
    RGB.check(rows)


def test_pictures_of_several_sizes_become_one_and_what_fits_stays() -> None:
    rows, _ = resized_rows(RGB, [file_of(ROWS[0]), file_of(BIG[1])], most=2)
    np.testing.assert_array_equal(rows, [ROWS[0], scaled(BIG[1], 4, 5)])
    grey, is_one = resized_rows(GREY, BIG[0, :, :, 0], most=1)
    assert (grey.shape, is_one) == ((1, 4, 5, 1), True)
    np.testing.assert_array_equal(grey[0, :, :, 0], scaled(BIG[0, :, :, 0], 4, 5))


def test_a_free_side_goes_to_the_nearest_length() -> None:
    side = {"minimum": 8, "maximum": 16, "multiple_of": 4}
    free = input_from_any({**image(8, 8), "height": side, "width": side})
    for height, width, expected in ((8, 12, (8, 12)), (1, 90, (8, 16)), (11, 13, (12, 12))):
        rows, _ = resized_rows(free, np.zeros((height, width, 3), np.uint8), most=1)
        assert rows.shape[1:3] == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (BIG / 255, r"image holds 0\.\d+, a float"),
        (BIG[0, 0], "image has rows of shape"),
        (BIG[..., :2], "image has rows of shape"),
        (b"", "image cannot be read as PNG, JPEG, WebP or BMP"),
        ("a.png", "image is a text"),
        (np.zeros((3, 9, 9, 3), np.uint8), "image holds over 2 pictures, more than are drawn"),
        ([file_of(BIG[0])] * 3, "image holds over 2 pictures, more than are drawn"),
        (iter([file_of(BIG[0])]), "image is an iterator; to be scaled it has to be a list"),
    ],
)
def test_what_is_no_picture_is_not_scaled(value: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        resized_rows(RGB, value, most=2)


def test_label_maps_are_scaled_without_labels_between() -> None:
    part = {"name": "map", "kind": "label_map", "height": 4, "width": 4, "labels": 9}
    rows, _ = resized_rows(input_from_any(part), np.array([[0, 8], [8, 0]], np.uint8), most=1)
    np.testing.assert_array_equal(rows[0], np.kron([[0, 8], [8, 0]], np.ones((2, 2))))


@pytest.mark.parametrize("shape", [(64, 96, 3), (64, 96, 4), (2, 64, 96, 3)])
def test_colours_are_no_pictures_of_a_grey_one(shape: tuple[int, ...]) -> None:
    mask = input_from_any({"name": "hole", "kind": "mask", "height": 8, "width": 8})
    for item in (GREY, mask):
        with pytest.raises(BadRequest, match="look like channels|rows of shape"):
            resized_rows(item, np.zeros(shape, np.uint8), most=99)


def test_lists_of_arrays_are_pictures_of_any_size_each() -> None:
    rows, is_one = resized_rows(RGB, [BIG[0], BIG[1, :5, :7]], most=2)
    np.testing.assert_array_equal(rows, [scaled(BIG[0], 4, 5), scaled(BIG[1, :5, :7], 4, 5)])
    assert not is_one
    rows, is_one = resized_rows(GREY, [BIG[0, :, :, 0], BIG[1, :5, :7, :1]], most=2)
    assert (rows.shape, is_one) == ((2, 4, 5, 1), False)
    none, _ = resized_rows(RGB, np.zeros((0, 9, 9, 3), np.uint8), most=2)
    assert len(none) == 0
