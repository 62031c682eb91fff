import socket

import numpy as np
import pytest
import torch
from torch import Tensor

from latentry.contract.errors import NotFound
from latentry.training import data
from latentry.training.data import TEXTURE_NAMES, Digits, Textures, load_dataset


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def textures() -> Textures:
    return Textures()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(images: Tensor) -> set[bytes]:
    return {row.tobytes() for row in images.flatten(1).numpy()}


def test_the_digits_split_is_whole_stratified_and_always_the_same(digits: Digits) -> None:
    train, held_out = digits.train, digits.held_out
    assert train.labels is not None
    assert held_out.labels is not None
    assert len(train.images) + len(held_out.images) == 1797
    assert not rows(train.images) & rows(held_out.images)
    shares = np.bincount(held_out.labels) / np.bincount(torch.cat([train.labels, held_out.labels]))
    assert shares == pytest.approx(np.full(10, 0.2), abs=0.005)
    assert torch.equal(Digits().held_out.images, held_out.images)
    assert held_out.labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]


def test_digits_are_32x32_in_range_and_keep_their_8x8_picture(digits: Digits) -> None:
    images = digits.train.images
    assert images.shape[1:] == (1, 32, 32)
    assert images.dtype == torch.float32
    assert (images.min().item(), images.max().item()) == (-1, 1)
    batch = digits.draw(17, rng())
    assert batch.images.shape == (17, 1, 32, 32)
    assert rows(batch.images) <= rows(images)


def test_textures_come_in_equal_shares_and_in_range(textures: Textures) -> None:
    images, photographs = textures.draw_crops(50, rng())
    assert images.shape == (50, 3, 64, 64)
    assert images.abs().max() <= 1
    counts = np.bincount(photographs, minlength=len(TEXTURE_NAMES))
    assert counts.max() - counts.min() <= 1
    assert textures.draw(4, rng()).labels is None


def test_held_out_crops_are_of_rows_that_training_never_sees(textures: Textures) -> None:
    for train, held_out, height in zip(
        textures._train, textures._held_out, (512, 872, 400), strict=True
    ):
        assert train.shape[1] + held_out.shape[1] == height
        assert held_out.shape[1] == pytest.approx(0.2 * height, abs=1)


@pytest.mark.parametrize("name", ["digits", "textures"])
def test_drawing_is_fixed_by_the_seed(name: str) -> None:
    data = load_dataset(name)
    first, again, other = (data.draw(6, rng(seed)).images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["digits", "textures"])
def test_every_source_states_a_licence(name: str) -> None:
    sources = load_dataset(name).sources
    assert sources
    assert all(item.source and item.licence and item.detail for item in sources)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a data set opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(Digits().train.images) == 1438
    assert Textures().draw(3, rng()).images.shape == (3, 3, 64, 64)


def test_an_unknown_data_set_lists_the_known() -> None:
    with pytest.raises(NotFound, match="'faces' is unknown; use one of digits, textures"):
        load_dataset("faces")


def test_a_photograph_that_the_package_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_TEXTURE_FILES", ("ihc.png", "nothing.png"))
    with pytest.raises(NotFound, match=r"has no data/nothing\.png; install a wheel of scikit-ima"):
        Textures()
