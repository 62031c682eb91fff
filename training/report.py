"""Pictures of a training: a grid of samples, and the two losses."""

import io

import numpy as np
from torch import nn

from latentry.contract.images import encode_image, grid_from_images
from latentry.contract.kinds.formats import Format
from latentry.training.metrics import generate_images

_MAX_COLUMNS = 10
_MAX_WIDTH = 384  # pixels: a picture to look at beside the checkpoint, not to keep
_SMOOTHED_POINTS = 200


def png_from_samples(generator: nn.Module, z_dim: int, num_classes: int = 0) -> bytes:
    """Return a PNG of the samples of the first seeds, a square of at most 10 x 10.

    With ten classes and small images each column is one class.

    Args:
        generator: In evaluation mode.
        z_dim: Length of z.
        num_classes: Number of classes; 0 for an unconditional generator.
    """
    first, _ = generate_images(generator, z_dim, 1, num_classes)
    columns = max(1, min(_MAX_COLUMNS, _MAX_WIDTH // first.shape[2]))
    images, _ = generate_images(generator, z_dim, columns**2, num_classes)
    return encode_image(grid_from_images(images, columns), Format.PNG)


def png_from_losses(losses: list[tuple[float, float]]) -> bytes:
    """Return a PNG of both losses over the steps, averaged to at most 200 points."""
    from matplotlib.figure import Figure  # slow to import

    window = max(1, len(losses) // _SMOOTHED_POINTS)
    usable = len(losses) // window * window
    points = np.array(losses)[:usable].reshape(-1, window, 2).mean(axis=1)
    steps = (np.arange(len(points)) + 1) * window
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, points[:, 0], label="discriminator")
    axes.plot(steps, points[:, 1], label="generator")
    axes.set(xlabel="step", ylabel=f"hinge loss (mean of {window} steps)")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
