"""What is measured on a generator's samples when its training ends.

Samples are drawn as they are served: z from the seed contract, seeds 0 .. n-1, uint8 images.
Looking right is not enough: a collapsed generator draws perfect but few images, so each data set
has a metric that only varied samples can pass.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from latentry.contract.images import Uint8, uint8_from_sample
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer, seed_range
from latentry.training.data import TEXTURE_NAMES, Digits, RealImages, Textures, load_dataset

SAMPLES = 2000

_BATCH = 100
_RNG_SEED = 1  # of the real crops that samples are compared with
_CLOSEST_SHARE = 0.01

Features = NDArray[np.float32]


def generate_images(
    generator: nn.Module, z_dim: int, count: int, num_classes: int = 0
) -> tuple[Uint8, NDArray[np.int64]]:
    """Return the samples of seeds 0 .. count-1; sample i has class i modulo num_classes.

    Args:
        generator: In evaluation mode.
        z_dim: Length of z.
        count: Number of samples.
        num_classes: Number of classes; 0 for an unconditional generator.

    Returns:
        uint8 [count, H, W, C], and int64 [count], the classes (all 0 where there are none).
    """
    seeds = seed_range(0, count)
    labels = seeds % max(num_classes, 1)
    drawer = LatentDrawer(LatentInput(name="z", shape=(z_dim,)))
    images = []
    with torch.no_grad():
        for first in range(0, count, _BATCH):
            z = torch.from_numpy(drawer.draw(seeds[first : first + _BATCH]))
            inputs = (z, torch.from_numpy(labels[first : first + _BATCH])) if num_classes else (z,)
            images.append(uint8_from_sample(generator(*inputs).numpy()))
    return np.concatenate(images), labels


def measure_generator(data: str, generator: nn.Module, z_dim: int) -> dict[str, float]:
    """Return the metrics of ``generator``, in evaluation mode, over seeds 0 .. 1999."""
    num_classes = len(load_dataset(data).classes)
    return METRICS[data](*generate_images(generator, z_dim, SAMPLES, num_classes))


def measure_digits(images: Uint8, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of generated digits, uint8 [N, 32, 32, 1], with the classes asked for.

    - ``label_agreement``: share of the samples that a classifier trained on the real training
      part puts into the class that was asked for.
    - ``classifier_accuracy``: accuracy on the real held-out part of a classifier trained on the
      samples alone (Ravuri and Vinyals 2019). A collapsed generator reaches about 0.74.
    - ``real_classifier_accuracy``: the same for a classifier trained on the real training part.
    """
    data = Digits()
    generated = _digit_features(_tensor_from_uint8(images))
    train, train_labels = _labelled_features(data.train)
    held_out, held_out_labels = _labelled_features(data.held_out)
    real_classifier = SVC().fit(train, train_labels)
    generated_classifier = SVC().fit(generated, labels)
    return {
        "label_agreement": float(real_classifier.score(generated, labels)),
        "classifier_accuracy": float(generated_classifier.score(held_out, held_out_labels)),
        "real_classifier_accuracy": float(real_classifier.score(held_out, held_out_labels)),
    }


def measure_textures(images: Uint8, _labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of generated textures, uint8 [N, 64, 64, 3]; they have no classes.

    - ``share_<photograph>``: share of the samples that a classifier trained on real crops assigns
      to each photograph; a third each would be ideal.
    - ``photograph_accuracy``: that classifier's accuracy on held-out crops.
    - ``near_copies``: share of samples nearer to a training crop than 99 % of other real crops
      are. Some of those overlap, so this finds samples that repeat the training data.
    - ``nearest_ratio``: median distance of a sample to the nearest training crop, over that of
      held-out crops; far below 1 the generator repeats the training data.

    Distances are between crops averaged to 16x16 pixels.
    """
    data = Textures()
    rng = torch.Generator().manual_seed(_RNG_SEED)
    train, photographs = data.draw_crops(2 * SAMPLES, rng)
    others, _ = data.draw_crops(SAMPLES, rng)
    held_out, held_out_photographs = data.draw_crops(SAMPLES, rng, held_out=True)
    generated = _tensor_from_uint8(images)
    classifier = make_pipeline(StandardScaler(), SVC())
    classifier.fit(_texture_features(train), photographs.numpy())
    assigned = classifier.predict(_texture_features(generated))
    accuracy = classifier.score(_texture_features(held_out), held_out_photographs.numpy())
    shares = {
        f"share_{name}": float((assigned == index).mean())
        for index, name in enumerate(TEXTURE_NAMES)
    }
    return {
        **shares,
        "photograph_accuracy": float(accuracy),
        **_measure_distances(generated, train, others, held_out),
    }


METRICS: dict[str, Callable[[Uint8, NDArray[np.int64]], dict[str, float]]] = {
    "digits": measure_digits,
    "textures": measure_textures,
}


def _measure_distances(
    generated: Tensor, train: Tensor, others: Tensor, held_out: Tensor
) -> dict[str, float]:
    index = NearestNeighbors(n_neighbors=1).fit(_small_pixels(train))
    near, real, unseen = (
        index.kneighbors(_small_pixels(images))[0][:, 0] for images in (generated, others, held_out)
    )
    return {
        "near_copies": float((near < np.quantile(real, _CLOSEST_SHARE)).mean()),
        "nearest_ratio": float(np.median(near) / np.median(unseen)),
    }


def _labelled_features(real: RealImages) -> tuple[Features, NDArray[np.int64]]:
    labels = torch.zeros(len(real.images)) if real.labels is None else real.labels
    return _digit_features(real.images), labels.numpy()


def _tensor_from_uint8(images: Uint8) -> Tensor:
    """Return float32 [N, C, H, W] in [-1, 1] of uint8 [N, H, W, C]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _digit_features(images: Tensor) -> Features:
    """Return the 8x8 pixels, as the digits were before they were enlarged."""
    return _pooled(images, 4)


def _small_pixels(images: Tensor) -> Features:
    return _pooled(images, 4)


def _pooled(images: Tensor, factor: int) -> Features:
    pixels: Features = avg_pool2d(images, factor).flatten(1).numpy()
    return pixels


def _texture_features(images: Tensor) -> Features:
    """Return colour and grain of float32 [N, 3, H, W].

    The mean and deviation of each colour, of the differences between neighbouring pixels, and how
    the colours vary together: nothing about where things are, because a crop can show anything.
    """
    flat = images.flatten(2)
    across = images.diff(dim=3).abs().mean(dim=(2, 3))
    down = images.diff(dim=2).abs().mean(dim=(2, 3))
    red, green, blue = flat[:, 0], flat[:, 1], flat[:, 2]
    contrasts = torch.stack([(red - green).std(dim=1), (green - blue).std(dim=1)], dim=1)
    features: Features = torch.cat(
        [flat.mean(dim=2), flat.std(dim=2), across, down, contrasts], dim=1
    ).numpy()
    return features
