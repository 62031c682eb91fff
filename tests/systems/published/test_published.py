"""Published kinds of generators, small: exported, served, streamed, the same in every company."""

import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published.catalogue import PUBLISHED, by_torch
from running_server import RunningServer
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from latentry.clients import BadRequest, Client
from latentry.contract.images import encode_image
from latentry.contract.kinds.formats import Format
from latentry.contract.seeds import stream_words
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo
from latentry.export.proofs.proof_bench import draw_rows
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.local import LocalTransport

pytestmark = [pytest.mark.server, pytest.mark.acceptance]

NAMES = sorted(PUBLISHED)
SAMPLES = 11  # of which some go into a second batch


def arguments_of(spec: GeneratorSpec, count: int) -> dict[str, Any]:
    """Return arguments of ``generate``: everything different for each sample."""
    request = example_request(spec, count)
    seeds = request.pop("seed", None)
    return request if seeds is None else {"seeds": seeds[:, 0], **request}


def one_of(arguments: dict[str, Any], index: int) -> dict[str, Any]:
    return {name: values[index : index + 1] for name, values in arguments.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_the_same_alone_in_a_batch_streamed_and_here(
    client: Client, published_repository: Path, name: str
) -> None:
    spec = client.info(name).spec
    arguments = arguments_of(spec, SAMPLES)
    together = client.generate(name, **arguments)
    chunks = list(client.stream(name, **arguments, chunk_size=3))
    with Client(transport=LocalTransport(published_repository, (name,))) as here:
        local = here.generate(name, **arguments)
    for item in spec.outputs:
        expected = together[item.name]
        assert len(expected) == SAMPLES
        assert item.raw.fits(expected.shape[1:])
        streamed = np.concatenate([chunk[item.name] for chunk in chunks])
        np.testing.assert_array_equal(streamed, expected)
        np.testing.assert_array_equal(local[item.name], expected)
    for index in (0, 7, 10):
        alone = client.generate(name, **one_of(arguments, index))
        for item in spec.outputs:
            np.testing.assert_array_equal(alone[item.name][0], together[item.name][index])


@pytest.mark.parametrize("name", NAMES)
def test_files_hold_the_same(client: Client, name: str, tmp_path: Path) -> None:
    arguments = arguments_of(client.info(name).spec, 3)
    raw = client.generate(name, **arguments)
    files = client.generate(name, **arguments, format="png")
    for item in client.info(name).spec.outputs:
        np.testing.assert_array_equal(files[item.name], raw[item.name])
    assert files.save(tmp_path) == [
        tmp_path / path.name for path in raw.save(tmp_path / "again", format="png")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_served_picture_is_that_of_torch(client: Client, name: str) -> None:
    spec = client.info(name).spec
    served = client.generate(name, **arguments_of(spec, 3), format="float")
    rows = {**draw_rows(spec, 3), **served.inputs}
    first = spec.outputs[0].name
    sample = served.tensors.get(f"{first}.sample", served[first])
    np.testing.assert_allclose(sample, by_torch(name, rows), atol=1e-5)


@pytest.mark.system("cGAN")
def test_labels_are_mixed_and_checked(client: Client) -> None:
    labels = [0, 2, 1, 2]
    mixed = client.generate("attention", seeds=range(4), class_label=labels)
    for index, label in enumerate(labels):
        alone = client.generate("attention", seeds=index, class_label=label)
        np.testing.assert_array_equal(alone.images[0], mixed.images[index])
    with pytest.raises(BadRequest, match="class_label in row 0 is 3; it takes an integer from 0"):
        client.generate("attention", seeds=0, class_label=3)
    named = client.generate("attention", seeds=range(2), class_label=["cat", "emu"])
    np.testing.assert_array_equal(named.images, mixed.images[:2])


@pytest.mark.system("cGAN")
def test_a_label_out_of_range_harms_no_neighbour(published: RunningServer, client: Client) -> None:
    expected = client.generate("attention", seeds=range(4), class_label=1).images
    raw = InferenceServerClient(published.url)
    answers: queue.Queue[tuple[int, int, Any]] = queue.Queue()
    for seed in range(4):  # sent at once, so that they share batches
        for label in (1, 9):
            inputs = [InferInput(name, [1, 1], "INT64") for name in ("seed", "class_label")]
            inputs[0].set_data_from_numpy(np.array([[seed]]))
            inputs[1].set_data_from_numpy(np.array([[label]]))

            def keep(result: Any, error: Any, asked: tuple[int, int] = (seed, label)) -> None:
                answers.put((*asked, error or result.as_numpy("image")))

            raw.async_infer("attention", inputs, keep)
    for _ in range(8):
        seed, label, answer = answers.get(timeout=60)
        if label == 9:
            assert "[INVALID_ARGUMENT] class_label in row 0 is 9" in str(answer)
        else:
            np.testing.assert_array_equal(answer[0], expected[seed])
    raw.close()


@pytest.mark.system("SAGAN")
def test_attention_and_spectral_norm_are_exported(published_repository: Path) -> None:
    (entry,) = newest_entries(published_repository, ("attention",))
    assert entry.build.parity.differences["image.sample"] < 1e-4
    assert entry.build.parity.batch_sizes == (1, 3, 7, 8)


@pytest.mark.system("Perturbed layered GAN")
def test_layers_come_in_one_answer_and_make_the_picture(client: Client) -> None:
    result = client.generate("layered", seeds=range(5), format="float")
    mask, foreground, background = (
        result[f"{name}.sample"] for name in ("mask", "foreground", "background")
    )
    blended = mask * foreground + (1 - mask) * background
    assert result.samples is not None
    np.testing.assert_allclose(result.samples, blended, atol=1e-5)
    assert result["mask"].dtype == np.uint8
    assert result["mask"].shape == (5, 16, 16)


def test_noise_of_a_layer_is_drawn_from_the_seed_or_given(client: Client) -> None:
    drawn = client.generate("layered", seeds=[3, 4])
    words = stream_words("latent:noise")
    noise = [np.random.RandomState([seed, *words]).randn(1, 16, 16) for seed in (3, 4)]
    given = client.generate("layered", seeds=[3, 4], noise=noise)
    np.testing.assert_array_equal(given["foreground"], drawn["foreground"])
    other = client.generate("layered", seeds=[3, 4], noise=np.zeros((1, 16, 16)))
    np.testing.assert_array_equal(other["background"], drawn["background"])
    assert (other["foreground"] != drawn["foreground"]).any()


def test_asking_for_one_output_leaves_its_bytes(published: RunningServer, client: Client) -> None:
    expected = client.generate("layered", seeds=2)
    raw = InferenceServerClient(published.url)
    seed = InferInput("seed", [1, 1], "INT64")
    seed.set_data_from_numpy(np.array([[2]]))
    answer = raw.infer("layered", [seed], outputs=[InferRequestedOutput("mask")])
    np.testing.assert_array_equal(answer.as_numpy("mask"), expected["mask"])
    assert answer.as_numpy("image") is None
    raw.close()


@pytest.mark.system("Streamlined I2I GAN")
def test_a_picture_goes_in_and_comes_out(client: Client, tmp_path: Path) -> None:
    spec = client.info("translation").spec
    pictures, regions = (example_request(spec, 4)[name] for name in ("image", "region"))
    rows = client.generate("translation", image=pictures, region=regions)
    assert rows.seeds is None
    assert rows.images.shape == (4, 16, 16, 3)
    path = tmp_path / "photo.png"
    path.write_bytes(encode_image(pictures[1], Format.PNG))
    for picture in (path, path.read_bytes(), torch.from_numpy(pictures[1])):
        one = client.generate("translation", image=picture, region=regions[1])
        np.testing.assert_array_equal(one.images[0], rows.images[1])
        np.testing.assert_array_equal(one["change"][0], rows["change"][1])
    for strength in (0, 0.5):
        weak = client.generate("translation", image=path, region=regions[1], strength=strength)
        assert (weak["change"] <= strength * rows["change"][1] + 1e-6).all()
    with pytest.raises(BadRequest, match="image is a text; for a file give a pathlib.Path"):
        client.generate("translation", image=str(path), region=regions[1])
    with pytest.raises(BadRequest, match="this model takes no seeds"):
        client.generate("translation", image=path, region=regions[1], seeds=1)
    with pytest.raises(BadRequest, match="region is required"):
        client.generate("translation", image=path)


def test_infos_tell_what_there_is(client: Client) -> None:
    info: ModelInfo = client.info("translation")
    assert not info.spec.takes_seed
    assert info.spec.takes == "image, region, strength, format"


def picture_of(height: int, width: int, seed: int) -> Any:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_sizes_are_mixed_and_every_picture_is_as_alone(
    client: Client, published_repository: Path
) -> None:
    sizes = [(8, 8), (64, 96), (12, 31), (8, 8), (64, 8), (12, 31)]
    pictures = [picture_of(*size, seed) for seed, size in enumerate(sizes)]
    with ThreadPoolExecutor(len(sizes)) as callers:  # so that they meet in one batch
        mixed = list(callers.map(lambda p: client.generate("enlarger", image=p).images, pictures))
    with Client(transport=LocalTransport(published_repository, ("enlarger",))) as here:
        for picture, image in zip(pictures, mixed, strict=True):
            assert image.shape == (1, 2 * picture.shape[0], 2 * picture.shape[1], 3)
            np.testing.assert_array_equal(here.generate("enlarger", image=picture).images, image)
    (chunk,) = client.stream("enlarger", image=pictures[2], format="png")
    np.testing.assert_array_equal(chunk.images, mixed[2])


@pytest.mark.parametrize(("height", "width"), [(10, 16), (4, 16), (68, 16), (8, 7), (8, 97)])
def test_a_size_outside_the_range_is_refused(client: Client, height: int, width: int) -> None:
    said = (
        rf"image is a picture of {height} x {width}; it takes pictures of \(8 to 64 in steps of 4\)"
    )
    with pytest.raises(BadRequest, match=said):
        client.generate("enlarger", image=picture_of(height, width, 0))


def test_pictures_of_one_request_have_one_size(client: Client) -> None:
    with pytest.raises(BadRequest, match="different shapes|several sizes"):
        client.generate("enlarger", image=[picture_of(8, 8, 0), picture_of(12, 8, 0)])
