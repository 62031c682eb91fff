import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from latentry.training.report import png_from_losses, png_from_samples


class Grey(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, z: Tensor, class_label: Tensor | None = None) -> Tensor:
        grey = z[:, :1] if class_label is None else class_label[:, None] / 10
        return grey[:, :, None, None].expand(-1, 1, self.size, self.size)


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("size", "width"), [(8, 80), (64, 384), (512, 512)])
def test_the_grid_stays_small(size: int, width: int) -> None:
    assert pixels(png_from_samples(Grey(size), 4)).shape == (width, width)


def test_with_ten_classes_each_column_is_one_class() -> None:
    columns = pixels(png_from_samples(Grey(8), 4, num_classes=10))[:, ::8]
    assert (columns == columns[0]).all()
    assert columns[0].tolist() == sorted(columns[0].tolist())


@pytest.mark.parametrize("steps", [1, 7, 1001])
def test_losses_of_any_number_of_steps_are_drawn(steps: int) -> None:
    assert pixels(png_from_losses([(1.0, 2.0)] * steps)).shape == (400, 800, 4)
