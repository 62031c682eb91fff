"""The discriminator: needed to train a generator, never part of a checkpoint."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from latentry.training.architectures import check_sizes, layer_widths

_SLOPE = 0.2


class ProjectionDiscriminator(nn.Module):
    """A convolutional discriminator with spectral norm, conditional by projection.

    Spectral norm is of Miyato et al. 2018 and the projection, ``f(x) + <embed(y), h(x)>``, of
    Miyato and Koyama 2018 (equation 4). Before the last convolution it is shown how much the
    batch varies (Karras et al. 2018, section 3, with the whole batch as one group): a generator
    that repeats itself, or forgets a part of the data, gives itself away. One number for all
    channels: with one for each the discriminator wins without looking at the images.

    Args:
        channels: Channels of the image.
        resolution: Height and width of the image, a power of two from 8.
        width: Channels of the first layer; each layer halves the resolution and doubles them.
        num_classes: Number of classes; 0 for unconditional data.

    Raises:
        CheckpointError: A size is no integer from 1 to 65536, or the resolution is no power of two.
    """

    def __init__(self, channels: int, resolution: int, width: int, num_classes: int = 0) -> None:
        super().__init__()
        check_sizes(channels=channels, resolution=resolution, width=width)
        widths = [channels, *reversed(layer_widths(width, resolution))]
        top = widths[-1]
        self.convolutions = nn.ModuleList(
            spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1))
            for narrow, wide in pairwise(widths)
        )
        self.last = spectral_norm(nn.Conv2d(2 * top, top, 3, padding=1))
        self.score = spectral_norm(nn.Linear(top, 1))
        self.embed = nn.Embedding(num_classes, top) if num_classes else None

    def forward(self, images: Tensor, class_label: Tensor | None = None) -> Tensor:
        """Return one score per image: high for real, low for generated.

        Args:
            images: float32 [N, channels, resolution, resolution] in [-1, 1], all real or all
                generated, because the batch is judged as a whole too.
            class_label: int64 [N]; required where the data has classes.

        Returns:
            float32 [N].
        """
        x = images
        for convolution in self.convolutions:
            x = leaky_relu(convolution(x), _SLOPE)
        x = torch.cat([x, batch_deviation(x)], dim=1)
        features = leaky_relu(self.last(x), _SLOPE).sum(dim=(2, 3))  # [N, top]
        scores: Tensor = self.score(features)[:, 0]
        if self.embed is not None:
            scores = scores + (self.embed(class_label) * features).sum(dim=1)
        return scores


def batch_deviation(x: Tensor) -> Tensor:
    """Return how much x [N, C, H, W] varies within the batch: one number, in the shape of x.

    The standard deviation over N, averaged over everything else. It fills as many channels as x
    has so that it counts as much as x: spectral norm would let a single channel fade.
    """
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return deviation.expand_as(x)
