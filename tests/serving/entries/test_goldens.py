from pathlib import Path

import numpy as np
import pytest

from latentry.contract.errors import EntryError
from latentry.contract.images import Uint8
from latentry.serving.entries.goldens import (
    GOLDEN_FILE,
    compare_with_goldens,
    golden_bytes,
    read_goldens,
    save_worst_pair,
)
from latentry.serving.entries.repository import newest_entries


@pytest.fixture
def goldens() -> Uint8:
    return np.random.default_rng(0).integers(1, 254, (8, 32, 32, 1), np.uint8)


def test_goldens_survive_their_file(repository: Path, goldens: Uint8, tmp_path: Path) -> None:
    manifest = newest_entries(repository, ("digits",))[0].manifest
    (tmp_path / GOLDEN_FILE).write_bytes(golden_bytes(goldens))
    np.testing.assert_array_equal(read_goldens(tmp_path, manifest), goldens)
    (tmp_path / GOLDEN_FILE).write_bytes(b"no archive")
    with pytest.raises(EntryError, match=r"goldens\.npz holds no golden images"):
        read_goldens(tmp_path, manifest)


def test_equal_images_pass_exactly(goldens: Uint8) -> None:
    verdict = compare_with_goldens(goldens, goldens, same_class=True)
    assert verdict.passed
    assert verdict.exact


@pytest.mark.parametrize(
    ("elements", "levels", "passes_on_another_class"),
    [(1, 1, True), (8, 1, True), (9, 1, False), (1, 2, False)],
)
def test_one_level_in_a_thousandth_passes_on_another_class_only(
    goldens: Uint8, elements: int, levels: int, passes_on_another_class: bool
) -> None:
    images = goldens.copy()
    images[5].reshape(-1)[:elements] += levels
    assert not compare_with_goldens(images, goldens, same_class=True).passed
    verdict = compare_with_goldens(images, goldens, same_class=False)
    assert verdict.passed is passes_on_another_class
    assert not verdict.exact
    assert (verdict.worst, verdict.levels) == (5, levels)


def test_one_element_of_small_goldens_may_differ_on_another_class() -> None:
    goldens = np.full((8, 8, 8, 1), 100, np.uint8)
    for elements, passes in ((1, True), (2, False)):
        images = goldens.copy()
        images[2].reshape(-1)[:elements] += 1
        assert compare_with_goldens(images, goldens, same_class=False).passed is passes
        assert not compare_with_goldens(images, goldens, same_class=True).passed


def test_other_shapes_never_pass_and_can_be_looked_at(goldens: Uint8, tmp_path: Path) -> None:
    images = goldens[:, :16]
    verdict = compare_with_goldens(images, goldens, same_class=False)
    assert not verdict.passed
    save_worst_pair(images, goldens, verdict, tmp_path / "pair.png")
    assert (tmp_path / "pair.png").read_bytes().startswith(b"\x89PNG")
