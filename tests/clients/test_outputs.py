"""Generators with several outputs, without pictures, and with a picture that goes in."""

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from arithmetic_server import ArithmeticServer, FakeTransport
from doubles import InfoOf
from PIL import Image

from latentry.clients import AsyncClient, BadRequest, Client, GenerateResult, Reply, ServerFault
from latentry.clients.results import result_from_replies
from latentry.clients.samples import CallerArguments, samples_from_arguments

OUTPUTS = ["embedding", "image", "shade", "alpha", "parts"]
SHAPES = {
    "embedding": (3,),
    "image": (6, 5, 3),
    "shade": (4, 3, 1),
    "alpha": (6, 5),
    "parts": (6, 5),
}
PIXELS = np.arange(54, dtype=np.uint8).reshape(3, 3, 2, 3)


@pytest.fixture
def transport(transport: FakeTransport, info: InfoOf) -> FakeTransport:
    for name in ("scene", "upscaler", "judge"):
        transport.infos[name] = info(name)
    return transport


@pytest.fixture
def client(transport: FakeTransport) -> Client:
    return Client(transport=transport)


def same(first: GenerateResult, second: GenerateResult, name: str) -> bool:
    return np.array_equal(first[name], second[name])


def test_every_output_comes_by_its_name(client: Client) -> None:
    result = client.generate("scene", seeds=range(20))
    assert list(result.tensors) == OUTPUTS
    for name, shape in SHAPES.items():
        assert result[name].shape == (20, *shape)
        assert result[name].dtype == (np.float32 if name == "embedding" else np.uint8)
        assert result[name].flags.writeable
    assert result.images is result["image"]
    assert result["parts"].max() == 6
    assert len(result) == 20
    with pytest.raises(BadRequest, match="scene gives no depth; it gives embedding, image, shade,"):
        result["depth"]
    assert repr(result) == (
        "<GenerateResult: 20 samples (embedding 3, image 6 x 5 x 3, shade 4 x 3 x 1, "
        "alpha 6 x 5, parts 6 x 5) from scene version 1>"
    )


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_encoded_outputs_decode_to_the_same_and_the_others_come_raw(
    client: Client, image_format: str
) -> None:
    raw = client.generate("scene", seeds=range(10))
    result = client.generate("scene", seeds=range(10), format=image_format)
    assert list(result.tensors) == ["embedding", *(f"{name}.encoded" for name in OUTPUTS[1:])]
    assert all(same(result, raw, name) for name in OUTPUTS)
    assert result["alpha"] is result["alpha"]  # decoded once
    assert result.encoded is not None
    assert result.encoded == result["image.encoded"].tolist()
    assert len(result) == 10


def test_float_gives_what_the_network_gave_of_each_picture(client: Client) -> None:
    result = client.generate("scene", seeds=range(10), format="float")
    samples = {name: rows.shape[1:] for name, rows in result.tensors.items() if "." in name}
    assert samples == {
        "image.sample": (3, 6, 5),
        "shade.sample": (1, 4, 3),
        "alpha.sample": (1, 6, 5),
        "parts.sample": (7, 6, 5),
    }
    assert result.samples is not None
    assert result.samples.dtype == np.float32
    assert np.array_equal(result.samples, result["image.sample"])


@pytest.mark.parametrize("image_format", ["raw", "png", "float"])
def test_streams_and_asyncio_give_the_same(
    client: Client, transport: FakeTransport, image_format: str
) -> None:
    whole = client.generate("scene", seeds=range(20), format=image_format)
    chunks = list(client.stream("scene", seeds=range(20), format=image_format, chunk_size=6))
    assert [len(chunk) for chunk in chunks] == [6, 6, 6, 2]

    async def run() -> GenerateResult:
        async with AsyncClient(transport=transport) as other:
            return await other.generate("scene", seeds=range(20), format=image_format)

    found = asyncio.run(run())
    for name in OUTPUTS:
        assert np.array_equal(np.concatenate([chunk[name] for chunk in chunks]), whole[name])
        assert same(found, whole, name)


@pytest.mark.parametrize("image_format", ["raw", "webp"])
def test_every_output_is_saved(client: Client, tmp_path: Path, image_format: str) -> None:
    result = client.generate("scene", seeds=[3, 3], format=image_format)
    paths = result.save(tmp_path)
    suffix = "webp" if image_format == "webp" else "png"
    endings = ["embedding.npy", suffix, f"shade.{suffix}", f"alpha.{suffix}", "parts.png"]
    stems = ("seed0000000003", "seed0000000003-2")
    assert [path.name for path in paths] == [f"{s}.{end}" for end in endings for s in stems]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    for index, stem in enumerate(stems):
        embedding = np.load(tmp_path / f"{stem}.embedding.npy")
        assert np.array_equal(embedding, result["embedding"][index])
        for name, ending in (("alpha", suffix), ("parts", "png")):
            with Image.open(tmp_path / f"{stem}.{name}.{ending}") as picture:
                assert np.array_equal(np.asarray(picture.convert("L")), result[name][index])


@pytest.mark.parametrize("image_format", ["jpeg", "png", "raw"])
def test_label_maps_are_png_whatever_the_format(
    client: Client, tmp_path: Path, image_format: str
) -> None:
    result = client.generate("scene", seeds=[3], format=image_format)
    assert np.array_equal(result["parts"], client.generate("scene", seeds=[3])["parts"])
    result.save(tmp_path, format="jpeg")
    with Image.open(tmp_path / "seed0000000003.parts.png") as picture:
        assert np.array_equal(np.asarray(picture), result["parts"][0])
        assert picture.info["latentry:seed"] == "3"
    kinds = Counter(path.suffix for path in tmp_path.iterdir())
    assert kinds == {".npy": 1, ".jpeg": 3, ".png": 1}


def test_chunks_do_not_write_over_each_other(client: Client, tmp_path: Path) -> None:
    chunks = list(client.stream("scene", seeds=range(20), chunk_size=8))
    for chunk in chunks:
        chunk.save(tmp_path)
    saved = [np.load(path) for path in sorted(tmp_path.glob("*.npy"))]
    whole = client.generate("scene", seeds=range(20))
    assert np.array_equal(np.array(saved), whole["embedding"])


def test_a_model_without_pictures(client: Client, tmp_path: Path) -> None:
    result = client.generate("judge", image=PIXELS)
    assert (len(result), result.seeds) == (3, None)
    assert result["embedding"].shape == (3, 3)
    for use in (lambda: result.images, lambda: iter(result), result.grid, result.to_pil):
        with pytest.raises(BadRequest, match=r"gives no picture; it gives embedding \(vector\)"):
            use()
    names = [path.name for path in result.save(tmp_path)]
    assert names == [f"sample{index:07d}.embedding.npy" for index in range(3)]
    chunks = list(client.stream("judge", image=PIXELS, chunk_size=1))
    assert np.array_equal(np.concatenate([c["embedding"] for c in chunks]), result["embedding"])


def test_pictures_go_in_however_they_are_held(client: Client, tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(files, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    expected = client.generate("upscaler", image=PIXELS)
    assert expected.seeds is None
    assert expected.inputs["strength"].tolist() == [0.5] * 3
    assert np.array_equal(expected.inputs["image"], PIXELS)
    for held in (
        files,
        [path.read_bytes() for path in files],
        [Image.open(path) for path in files],
        (files[0], PIXELS[1], files[2].read_bytes()),
        iter(files),
    ):
        assert same(client.generate("upscaler", image=held), expected, "image")
    for one in (files[0], files[0].read_bytes(), Image.fromarray(PIXELS[0]), PIXELS[0].tolist()):
        result = client.generate("upscaler", image=one, strength=[0.5, 1.0])
        assert len(result) == 2
        assert np.array_equal(result["image"][0], expected["image"][0])


def test_samples_without_seeds_are_named_by_their_place(client: Client, tmp_path: Path) -> None:
    result = client.generate("upscaler", image=PIXELS, strength=[0.5, 0.25, 1])
    (first, *_) = paths = result.save(tmp_path)
    assert [path.name for path in paths] == [f"sample{index:07d}.png" for index in range(3)]
    with Image.open(first) as picture:
        assert "latentry:seed" not in picture.info
        assert picture.info["latentry:strength"] == "0.5"
        assert picture.info["latentry:image"].startswith("sha256:")
    chunks = client.stream("upscaler", image=PIXELS, chunk_size=2)
    names = [path.name for chunk in chunks for path in chunk.save(tmp_path / "streamed")]
    assert names == [f"sample{index:07d}.png" for index in range(3)]


def test_pictures_travel_to_a_server_and_all_outputs_back(
    arithmetic_server: ArithmeticServer, client: Client, info: InfoOf
) -> None:
    for name in ("scene", "upscaler"):
        arithmetic_server.double.transport.infos[name] = info(name)
    with Client(arithmetic_server.url) as remote:
        assert same(
            remote.generate("upscaler", image=PIXELS, v=[0, 1, 0]),
            client.generate("upscaler", image=PIXELS, v=[0, 1, 0]),
            "image",
        )
        (chunk,) = remote.stream("upscaler", image=PIXELS)
        assert same(chunk, client.generate("upscaler", image=PIXELS), "image")
        for image_format in ("raw", "png"):
            found = remote.generate("scene", seeds=range(20), format=image_format)
            assert all(same(found, client.generate("scene", seeds=range(20)), n) for n in OUTPUTS)


@pytest.mark.parametrize("missing", OUTPUTS)
def test_an_answer_without_one_of_the_outputs_is_the_servers_fault(
    info: InfoOf, missing: str
) -> None:
    samples = samples_from_arguments(info("scene"), CallerArguments(seeds=[1, 2]))
    whole = {
        name: np.zeros((2, *shape), np.float32 if name == "embedding" else np.uint8)
        for name, shape in SHAPES.items()
    }
    result_from_replies(samples, samples.info, [Reply("1", whole)])
    part = {name: rows for name, rows in whole.items() if name != missing}
    with pytest.raises(ServerFault, match=f"the answer of scene lacks {missing}"):
        result_from_replies(samples, samples.info, [Reply("1", part)])
    short = {**whole, missing: whole[missing][:1]}
    with pytest.raises(ServerFault, match=f"scene answered {missing} as .* were expected"):
        result_from_replies(samples, samples.info, [Reply("1", short)])
