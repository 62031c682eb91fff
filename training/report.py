"""Pictures of a training: a grid of samples, and the two losses."""

import io

import numpy as np
from torch import nn

from latentry.serving.images import Format, encode_image, grid_from_images
from latentry.training.metrics import generate_images

_SAMPLES = 100
_COLUMNS = 10
_SMOOTHED_POINTS = 200


def png_from_samples(generator: nn.Module, z_dim: int, num_classes: int = 0) -> bytes:
    """Return a PNG of the samples of seeds 0 .. 99, ten a row; classes go from left to right.

    Args:
        generator: In evaluation mode.
        z_dim: Length of z.
        num_classes: Number of classes; 0 for an unconditional generator.
    """
    images, _ = generate_images(generator, z_dim, _SAMPLES, num_classes)
    return encode_image(grid_from_images(images, columns=_COLUMNS), Format.PNG)


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
