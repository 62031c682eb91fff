"""The training data: two real data sets that come with installed packages, so nothing is fetched.

``digits`` are scikit-learn's handwritten digits, ``textures`` are crops of three photographs in
scikit-image's wheel. Each keeps a part that training never sees, the same one every time.
"""

import importlib.resources
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from latentry.contract.errors import NotFound
from latentry.contract.kinds.picture import PictureOutput
from latentry.training.checkpoint import DataSource

TEXTURE_NAMES = ("ihc", "hubble_deep_field", "coffee")

_HELD_OUT_SHARE = 0.2
_SPLIT_SEED = 0
_DIGIT_RESOLUTION = 32
_CROP = 64
_TEXTURE_FILES = ("ihc.png", "hubble_deep_field.jpg", "coffee.png")


@dataclass(frozen=True)
class RealImages:
    """Real images, to train on or to measure with.

    Attributes:
        images: float32 [N, C, H, W] in [-1, 1].
        labels: int64 [N], or None where the data has no classes.
    """

    images: Tensor
    labels: Tensor | None


class Dataset(Protocol):
    """What a training needs of its data.

    Attributes:
        classes: Names of the classes; empty for unconditional data.
        image: Size and channels of an image.
        sources: Where the data comes from.
    """

    classes: ClassVar[tuple[str, ...]]
    image: ClassVar[PictureOutput]
    sources: ClassVar[tuple[DataSource, ...]]

    def draw(self, count: int, rng: torch.Generator) -> RealImages:
        """Return ``count`` random images of the training part."""
        ...


class Digits:
    """8x8 handwritten digits, enlarged to 32x32, in ten classes.

    Each class is split 80 / 20 by a fixed seed. An image is enlarged by bicubic interpolation.

    Attributes:
        train: The part to train on.
        held_out: The part that training never sees.
    """

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    image: ClassVar[PictureOutput] = PictureOutput(
        name="image", height=_DIGIT_RESOLUTION, width=_DIGIT_RESOLUTION, channels=1
    )
    sources: ClassVar[tuple[DataSource, ...]] = (
        DataSource(
            source=(
                "scikit-learn load_digits: Optical Recognition of Handwritten Digits, "
                "E. Alpaydin and C. Kaynak, 1998, doi 10.24432/C50P49"
            ),
            licence="CC BY 4.0 (UCI Machine Learning Repository)",
            detail="1,797 8x8 images in 10 classes; 80 % of each class, enlarged to 32x32",
        ),
    )

    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        small = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1  # stored as 0 .. 16
        size = (_DIGIT_RESOLUTION, _DIGIT_RESOLUTION)
        images = interpolate(small, size, mode="bicubic", align_corners=False).clamp(-1, 1)
        targets = torch.from_numpy(labels).long()
        held_out = torch.from_numpy(_choose_held_out(labels))
        self.train = RealImages(images[~held_out], targets[~held_out])
        self.held_out = RealImages(images[held_out], targets[held_out])

    def draw(self, count: int, rng: torch.Generator) -> RealImages:
        """Return ``count`` random images of the training part with their labels."""
        chosen = torch.randint(len(self.train.images), (count,), generator=rng)
        labels = self.train.labels
        return RealImages(self.train.images[chosen], None if labels is None else labels[chosen])


class Textures:
    """64x64 RGB crops of three photographs, each photograph as often as the others.

    The lowest fifth of each photograph is held out. Crops are flipped at random.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    image: ClassVar[PictureOutput] = PictureOutput(
        name="image", height=_CROP, width=_CROP, channels=3
    )
    sources: ClassVar[tuple[DataSource, ...]] = (
        DataSource(
            source="scikit-image immunohistochemistry (ihc.png): colonic glands, CMMI",
            licence="no known copyright restrictions (scikit-image)",
            detail="512x512 RGB; the upper four fifths, 64x64 crops",
        ),
        DataSource(
            source="scikit-image hubble_deep_field (hubble_deep_field.jpg): NASA, HubbleSite 2012",
            licence="public domain (NASA, as stated by scikit-image)",
            detail="872x1000 RGB; the upper four fifths, 64x64 crops",
        ),
        DataSource(
            source="scikit-image coffee (coffee.png): photograph by Rachel Michetti",
            licence="CC0",
            detail="400x600 RGB; the upper four fifths, 64x64 crops",
        ),
    )

    def __init__(self) -> None:
        photographs = [_read_photograph(name) for name in _TEXTURE_FILES]
        cuts = [round(photo.shape[1] * (1 - _HELD_OUT_SHARE)) for photo in photographs]
        self._train = [p[:, :cut] for p, cut in zip(photographs, cuts, strict=True)]
        self._held_out = [p[:, cut:] for p, cut in zip(photographs, cuts, strict=True)]

    def draw(self, count: int, rng: torch.Generator) -> RealImages:
        """Return ``count`` random crops of the training part, mixed, in equal shares."""
        images, _ = self.draw_crops(count, rng)
        return RealImages(images, None)

    def draw_crops(
        self, count: int, rng: torch.Generator, *, held_out: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return random crops and which photograph each is of.

        Args:
            count: Number of crops. Photographs' shares differ by at most one crop.
            rng: Where the randomness comes from.
            held_out: Take the part that training never sees.

        Returns:
            float32 [N, 3, 64, 64] in [-1, 1], and int64 [N], an index into TEXTURE_NAMES.
        """
        photographs = self._held_out if held_out else self._train
        order = torch.randperm(count, generator=rng) % len(photographs)
        crops = torch.stack([_random_crop(photographs[int(index)], rng) for index in order])
        return crops.float() / 127.5 - 1, order


DATASETS: dict[str, type[Dataset]] = {"digits": Digits, "textures": Textures}


@cache
def load_dataset(name: str) -> Dataset:
    """Return a data set; reading it again costs nothing.

    Raises:
        NotFound: There is no data set of this name, or the package lacks the file.
    """
    if name not in DATASETS:
        raise NotFound(f"data set {name!r} is unknown; use one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]()


def _choose_held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    state = np.random.RandomState(_SPLIT_SEED)  # its stream is frozen (NEP 19)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = state.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(len(members) * _HELD_OUT_SHARE)]] = True
    return chosen


def _read_photograph(name: str) -> Tensor:
    """Return uint8 [3, H, W]. The file is read itself: scikit-image's loader may download."""
    file = importlib.resources.files("skimage").joinpath("data", name)
    if not file.is_file():
        raise NotFound(
            f"the installed scikit-image has no data/{name}; "
            "install a wheel of scikit-image that carries it, such as 0.26"
        )
    with file.open("rb") as stream, Image.open(stream) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _random_crop(photograph: Tensor, rng: torch.Generator) -> Tensor:
    """Return uint8 [3, 64, 64], mirrored left-right, top-bottom, both or not at all."""
    _, height, width = photograph.shape
    top = int(torch.randint(height - _CROP + 1, (1,), generator=rng))
    left = int(torch.randint(width - _CROP + 1, (1,), generator=rng))
    mirrored = torch.randint(2, (2,), generator=rng).bool()
    crop = photograph[:, top : top + _CROP, left : left + _CROP]
    return crop.flip([axis + 1 for axis in (0, 1) if mirrored[axis]])
