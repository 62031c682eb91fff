"""Published generators of a picture that is given."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from published.catalogue import build_published, by_torch
from published.pictures import Colouring

from latentry.clients import BadRequest, Client
from latentry.contract.seeds import draw_uniform
from latentry.serving.entries.repository import newest_entries

pytestmark = [pytest.mark.server, pytest.mark.acceptance]


def pictures(count: int, height: int, width: int, *channels: int, seed: int) -> NDArray[np.uint8]:
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, height, width, *channels)).astype(np.uint8)


def levels_of(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture from -1 to 1 as levels, not yet whole, [N, H, W, C]."""
    levels: NDArray[np.float32] = (sample * 127.5 + 127.5).clip(0, 255).transpose(0, 2, 3, 1)
    return levels


@pytest.mark.system("pix2pix")
def test_a_file_goes_in_and_a_file_comes_out(client: Client, tmp_path: Path) -> None:
    photos = pictures(3, 16, 16, 3, seed=0)
    dropout = np.random.RandomState(1).uniform(size=(3, 8, 8, 8)).astype(np.float32)
    together = client.generate("paired", photo=photos, dropout=dropout, format="float")
    for index, photo in enumerate(photos):
        path = tmp_path / f"{index}.png"
        Image.fromarray(photo).save(path)
        one = {"photo": photo[None], "dropout": dropout[index][None]}
        expected = by_torch("paired", one)  # alone, so with norms of its own
        np.testing.assert_allclose(together["image.sample"][index], expected[0], atol=1e-4)
        answer = client.generate("paired", photo=path, dropout=one["dropout"], format="png")
        assert answer.encoded is not None
        drawn = np.asarray(Image.open(io.BytesIO(answer.encoded[0])), np.float32)
        np.testing.assert_allclose(drawn, levels_of(expected)[0], atol=0.51)


@pytest.mark.system("pix2pix")
def test_dropout_is_drawn_from_the_seed(client: Client) -> None:
    photo = pictures(1, 16, 16, 3, seed=2)
    served = client.generate("paired", seeds=range(4), photo=photo[0], format="float")
    dropout = draw_uniform(range(4), "latent:dropout", (8, 8, 8)).astype(np.float32)
    rows: dict[str, Any] = {"photo": photo.repeat(4, 0), "dropout": dropout}
    np.testing.assert_allclose(served["image.sample"], by_torch("paired", rows), atol=1e-4)
    assert len({image.tobytes() for image in served.images}) == 4


@pytest.mark.system("DeepFill v2 (gated conv)")
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (24, 16)])
def test_what_is_not_masked_comes_back(client: Client, height: int, width: int) -> None:
    rows: dict[str, Any] = {
        "image": pictures(3, height, width, 3, seed=3),
        "hole": 255 * (pictures(3, height, width, seed=4) > 128).astype(np.uint8),
        "sketch": pictures(3, height, width, 1, seed=5),
    }
    served = client.generate("inpainting", **rows, format="float")
    np.testing.assert_allclose(served["image.sample"], by_torch("inpainting", rows), atol=1e-4)
    whole, hole = rows["hole"] == 0, rows["hole"] == 255
    np.testing.assert_array_equal(served.images[whole], rows["image"][whole])
    assert (served.images[hole] != rows["image"][hole]).any(1).mean() > 0.9
    plain = client.generate("inpainting", **{**rows, "sketch": 0 * rows["sketch"]})
    assert (plain.images[hole] != served.images[hole]).any()
    np.testing.assert_array_equal(plain.images[whole], rows["image"][whole])


@pytest.mark.system("DeepFill v2 (gated conv)")
def test_every_level_comes_back_where_nothing_is_masked(client: Client) -> None:
    levels = np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3)
    nothing = np.zeros((1, 16, 16), np.uint8)
    served = client.generate("inpainting", image=levels, hole=nothing, sketch=nothing)
    np.testing.assert_array_equal(served.images, levels)
    with pytest.raises(BadRequest, match="8 to 32 in steps of 8"):
        client.generate("inpainting", image=levels[:, :12], hole=nothing[:, :12], sketch=nothing)


@pytest.mark.system("DeepFill v2 (gated conv)")
def test_coarse_and_refined_are_networks_of_their_own(published_repository: Path) -> None:
    (entry,) = newest_entries(published_repository, ("inpainting",))
    assert set(entry.build.artefacts) == {"coarse.onnx", "refine.onnx"}


@pytest.mark.system("Colorization GAN")
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (32, 8)])
def test_colours_are_within_a_level_of_a_reference(client: Client, height: int, width: int) -> None:
    colour = pytest.importorskip("skimage.color")
    grey = pictures(2, height, width, 1, seed=6)
    served = client.generate("colouring", grey=grey)
    assert served.images.shape == (2, height, width, 3)
    module, _ = build_published("colouring")
    assert isinstance(module, Colouring)
    lightness = torch.from_numpy(grey).permute(0, 3, 1, 2) * (100 / 255)
    with torch.no_grad():
        lab = torch.cat([lightness, module.colours(lightness)], 1).numpy()
    with warnings.catch_warnings():  # it tells of colours that no screen has
        warnings.simplefilter("ignore", UserWarning)
        reference = colour.lab2rgb(lab.astype(np.float64).transpose(0, 2, 3, 1)) * 255
    assert np.ptp(served.images.astype(int), axis=3).max() > 50  # it is no grey
    np.testing.assert_allclose(served.images, reference, atol=1)


@pytest.mark.system("PSCGAN")
def test_draws_of_a_posterior_are_distinct_and_their_mean_is_nearer(client: Client) -> None:
    down, across = np.mgrid[0:16, 0:16]
    clean = 128 + 80 * np.sin(down / 4 + np.arange(3)[:, None, None]) * np.cos(across / 5)
    clean = clean.transpose(1, 2, 0)
    noisy = clean + np.random.RandomState(7).normal(0, 25, clean.shape)
    photo = noisy.clip(0, 255).astype(np.uint8)
    served = client.generate("denoiser", seeds=range(64), photo=photo, noise_level=50)
    assert len({image.tobytes() for image in served.images}) == 64
    draws = served.images.astype(np.float64)
    single = np.square(draws - clean).mean((1, 2, 3))
    assert np.square(draws.mean(0) - clean).mean() < single.min()


@pytest.mark.system("PSCGAN")
def test_the_noise_level_is_an_input(client: Client) -> None:
    photo = pictures(1, 16, 16, 3, seed=8)
    level = np.array([0, 10, 25, 75], np.float32)
    served = client.generate("denoiser", seeds=[9] * 4, photo=photo[0], noise_level=level)
    given = client.generate(
        "denoiser", seeds=[9] * 4, photo=photo[0], noise_level=level, format="float"
    )
    z = np.random.RandomState(9).randn(1, 1, 16, 16).astype(np.float32)
    rows: dict[str, Any] = {"photo": photo.repeat(4, 0), "z": z.repeat(4, 0)}
    expected = by_torch("denoiser", {**rows, "noise_level": level})
    np.testing.assert_allclose(given["image.sample"], expected, atol=1e-5)
    np.testing.assert_array_equal(served.images[0], photo[0])  # nothing to be taken away
    usual = client.generate("denoiser", seeds=9, photo=photo[0])
    np.testing.assert_array_equal(usual.images[0], served.images[2])


@pytest.mark.system("Contextual loss")
@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 96), (20, 31)])
def test_an_enlarged_picture_is_that_of_torch_at_every_size(
    client: Client, published_repository: Path, height: int, width: int
) -> None:
    rows: dict[str, Any] = {"image": pictures(2, height, width, 3, seed=9)}
    served = client.generate("enlarger", **rows, format="float")
    assert served.images.shape == (2, 2 * height, 2 * width, 3)
    np.testing.assert_allclose(served["enlarged.sample"], by_torch("enlarger", rows), atol=1e-4)
    (entry,) = newest_entries(published_repository, ("enlarger",))
    assert set(entry.build.artefacts) == {"generator.onnx"}  # and no network of a loss
