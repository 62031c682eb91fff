"""Models that take pictures, and folders of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs.pictures import (
    NAMES,
    write_picture,
)
from PIL import Image

from latentry.clients import Client
from latentry.serving.runtime.local import LocalTransport


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with models that take pictures."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    from varied_generators import export_filled, export_tinted

    folder = tmp_path_factory.mktemp("pictures") / "model_repository"
    export_tinted(folder)
    export_filled(folder)
    return folder


@pytest.fixture(scope="session")
def by_hand(models: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(models, threads=1)) as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of five pictures, of every suffix."""
    for seed, name in enumerate(NAMES):
        write_picture(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.fixture
def masks(photos: Path) -> Path:
    """Return a folder of a mask for each, all of them PNG files."""
    folder = photos.parent / "masks"
    for seed, name in enumerate(NAMES):
        path = (folder / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.random.RandomState(seed).randint(0, 256, (16, 12)).astype(np.uint8)
        Image.fromarray(levels).save(path)
    return folder
