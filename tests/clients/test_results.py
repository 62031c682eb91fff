import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arithmetic_server import FakeTransport
from doubles import InfoOf
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from latentry.clients import BadRequest, ModelInfo, Reply, ServerFault, ServerGone
from latentry.clients.client import Client
from latentry.clients.results import result_from_replies
from latentry.clients.samples import CallerArguments, CheckedSamples, samples_from_arguments
from latentry.clients.streams import StreamCursor
from latentry.contract.images import encode_image, png_with_text
from latentry.contract.kinds.formats import Format


@pytest.fixture
def client(transport: FakeTransport) -> Client:
    return Client(transport=transport)


def test_a_result_says_how_to_draw_it_again(client: Client) -> None:
    result = client.generate("digits", seeds=[5, 6], class_label=[1, 2])
    assert result.images.shape == (2, 6, 5, 3)
    assert result.images.dtype == np.uint8
    assert result.seeds is not None
    assert result.seeds.tolist() == [5, 6]
    assert result.inputs["class_label"].tolist() == [1, 2]
    assert (result.model, result.version) == ("digits", "1")
    assert (result.model_digest, result.engine_class) == ("digest-1", "numpy-1")
    assert result.encoded is None
    assert result.samples is None
    assert repr(result) == "<GenerateResult: 2 samples (image 6 x 5 x 3) from digits version 1>"
    assert len(result) == 2
    assert [image.tobytes() for image in result] == [image.tobytes() for image in result.images]


@pytest.mark.parametrize("seeds", [range(3), range(30)])
@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_images_are_the_callers_own_however_many_parts_there_were(
    client: Client, seeds: range, image_format: str
) -> None:
    images = client.generate("plain", seeds=seeds, format=image_format).images
    assert images.flags.writeable
    images[0] = 0


def test_encoded_images_decode_to_the_same_pixels(client: Client) -> None:
    raw = client.generate("plain", seeds=range(20))
    for image_format in ("png", "webp"):
        result = client.generate("plain", seeds=range(20), format=image_format)
        assert result.encoded is not None
        assert len(result.encoded) == len(result) == 20
        assert all(isinstance(data, bytes) for data in result.encoded)
        assert np.array_equal(result.images, raw.images)


def test_float_gives_the_networks_own_output(client: Client) -> None:
    result = client.generate("plain", seeds=range(20), format="float")
    assert result.samples is not None
    assert result.samples.shape == (20, 3, 6, 5)
    assert result.samples.dtype == np.float32


def test_grids_and_pil(client: Client) -> None:
    result = client.generate("mapped", seeds=range(4))
    assert result.grid().size == (10, 12)
    assert result.grid(columns=4).size == (20, 6)
    assert [image.mode for image in result.to_pil()] == ["L"] * 4
    assert client.generate("plain", seeds=1).to_pil()[0].mode == "RGB"


@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_png_files_carry_their_identity(client: Client, tmp_path: Path, image_format: str) -> None:
    result = client.generate("digits", seeds=[42], class_label=2, format=image_format)
    (path,) = result.save(tmp_path / "new" / "folder")
    assert path.name == "seed0000000042-class2.png"
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), result.images[0])
        assert isinstance(picture, PngImageFile)
        assert picture.text == {
            "latentry:seed": "42",
            "latentry:class_label": "2",
            "latentry:model": "digits",
            "latentry:version": "1",
            "latentry:model_digest": "digest-1",
            "latentry:build": "numpy-fp32",
            "latentry:build_digest": "build-1",
            "latentry:engine_class": "numpy-1",
        }


def test_names_say_what_makes_the_image(client: Client, tmp_path: Path) -> None:
    def names(*args: Any, **kwargs: Any) -> list[str]:
        return [path.name for path in client.generate(*args, **kwargs).save(tmp_path)]

    assert names("plain", seeds=[3, 2**32 - 1]) == ["seed0000000003.png", "seed4294967295.png"]
    assert names("plain", seeds=[3, 3, 3]) == [
        "seed0000000003.png",
        "seed0000000003-2.png",
        "seed0000000003-3.png",
    ]
    assert names("digits", seeds=[3, 3], class_label=[0, 1]) == [
        "seed0000000003-class0.png",
        "seed0000000003-class1.png",
    ]
    assert names("mapped", seeds=[3, 3], truncation_psi=[1, 0.7]) == [
        "seed0000000003.png",
        "seed0000000003-psi0.7.png",
    ]
    assert names("plain", z=np.zeros((2, 4))) == ["sample0000000.png", "sample0000001.png"]


def test_chunks_of_latents_are_named_by_their_place_in_the_stream(
    client: Client, tmp_path: Path
) -> None:
    chunks = client.stream("plain", z=np.zeros((12, 4)), chunk_size=5)
    names = [path.name for chunk in chunks for path in chunk.save(tmp_path)]
    assert names == [f"sample{index:07d}.png" for index in range(12)]


def test_files_keep_the_format_they_came_in(client: Client, tmp_path: Path) -> None:
    result = client.generate("plain", seeds=1, format="jpeg")
    (path,) = result.save(tmp_path)
    assert path.suffix == ".jpeg"
    assert [path.read_bytes()] == result.encoded
    (other,) = result.save(tmp_path, format="webp")
    with Image.open(other) as picture:
        assert np.array_equal(np.asarray(picture), result.images[0])


def test_jpeg_files_have_quality_95() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def size(quality: int) -> int:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return file.tell()

    assert size(94) < len(encode_image(image, Format.JPEG)) == size(95) < size(96)


def test_tensors_are_no_files(client: Client, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="format float is not a file format"):
        client.generate("plain", seeds=1).save(tmp_path / "x", format="float")
    assert not (tmp_path / "x").exists()


def test_text_chunks_leave_the_picture_alone() -> None:
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    data = png_with_text(encode_image(image, Format.PNG), {"a": "1", "b": "é"})
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert isinstance(picture, PngImageFile)
        assert picture.text == {"a": "1", "b": "é"}
        assert np.array_equal(np.asarray(picture), image)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "the answer of plain lacks image"),
        ({"image": np.zeros((1, 6, 5, 3), np.uint8)}, r"2 of uint8 \[6, 5, 3\] were expected"),
        ({"image": np.zeros((2, 6, 5, 3), np.float32)}, r"answered image as float32"),
        ({"image": np.zeros((2, 5, 6, 3), np.uint8)}, r"uint8 \[2, 5, 6, 3\]"),
    ],
)
def test_answers_that_are_not_what_was_asked(
    info: InfoOf, outputs: dict[str, NDArray[Any]], words: str
) -> None:
    samples = samples_from_arguments(info("plain"), CallerArguments(seeds=[1, 2]))
    with pytest.raises(ServerFault, match=words):
        result_from_replies(samples, samples.info, [Reply("1", outputs)])


def test_parts_of_different_shapes_make_no_result(info: InfoOf) -> None:
    samples = samples_from_arguments(info("plain"), CallerArguments(seeds=[1, 2]))
    shapes = ((1, 6, 5, 3), (1, 6, 5, 1))
    parts = [Reply("1", {"image": np.zeros(shape, np.uint8)}) for shape in shapes]
    with pytest.raises(ServerFault, match="the answer of plain lacks image, or parts differ"):
        result_from_replies(samples, samples.info, parts)


def reply_of(version: str, count: int = 3) -> Reply:
    return Reply(version, {"image": np.zeros((count, 6, 5, 3), np.uint8)})


def test_parts_of_two_versions_make_no_result(info: InfoOf) -> None:
    samples = samples_from_arguments(info("plain"), CallerArguments(seeds=[1, 2]))
    parts = [reply_of("1", 1), reply_of("2", 1)]
    with pytest.raises(ServerFault, match="plain was replaced during the request"):
        result_from_replies(samples, samples.info, parts)


def replaced(info: ModelInfo, **changes: Any) -> ModelInfo:
    return dataclasses.replace(info, **changes)


def samples_of(client: Client) -> CheckedSamples:
    return samples_from_arguments(client.info("plain"), CallerArguments(seeds=range(3)))


def test_a_model_that_was_replaced_meanwhile_is_not_taken_for_the_old_one(client: Client) -> None:
    samples = samples_of(client)
    reply = reply_of(samples.info.version)
    assert result_from_replies(samples, samples.info, [reply]).info is samples.info
    for name in ("model_digest", "build_digest", "engine_class"):
        with pytest.raises(ServerFault, match="plain was replaced while it was drawing; ask again"):
            result_from_replies(samples, replaced(samples.info, **{name: "other"}), [reply])


def test_a_newer_version_that_drew_everything_is_named(client: Client) -> None:
    samples = samples_of(client)
    newer = replaced(samples.info, version="2", model_digest="newer")
    assert result_from_replies(samples, newer, [reply_of("2", 1), reply_of("2", 2)]).info == newer
    with pytest.raises(ServerFault, match="was replaced"):
        result_from_replies(samples, newer, [reply_of("1", 1), reply_of("2", 2)])


def test_a_stream_does_not_go_on_with_another_model(client: Client) -> None:
    cursor = StreamCursor(samples_of(client), None)
    cursor.check_model(client.info("plain"))
    with pytest.raises(ServerGone, match="plain was replaced by another model") as broken:
        cursor.check_model(replaced(client.info("plain"), model_digest="other"))
    assert broken.value.resume_at == 0
