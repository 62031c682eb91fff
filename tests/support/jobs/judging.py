"""Filters as a job's file gives them, and samples for them to judge."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jobs.samples import pixel_sha256
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from latentry.synthesis.filters.filters import FilterOptions
from latentry.synthesis.filters.judging import Candidates, Filter

OPTIONS: TypeAdapter[Any] = TypeAdapter(FilterOptions)

Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images, uint8 [N, 8, 8, 1], and their class labels, [N]."""

Write = Callable[..., Path]
"""Writes an ONNX classifier of a name, with an input and outputs of any kind."""


def load(kind: str, **options: Any) -> Filter:
    """Return the filter of this kind, loaded."""
    made: Filter = OPTIONS.validate_python({"kind": kind, **options}).load()
    return made


def candidates_of(
    images: NDArray[Any], labels: Sequence[int] | NDArray[Any] | None = None
) -> Candidates:
    """Return images as the first samples of a shard."""
    return Candidates(
        images=images,
        seeds=np.arange(len(images), dtype=np.int64),
        inputs={} if labels is None else {"class_label": np.array(labels, np.int64)},
        labels=None if labels is None else np.array(labels, np.int64),
        sha256=[pixel_sha256(image) for image in images],
        seen=set(),
    )


def part_of(batch: Candidates, part: slice) -> Candidates:
    """Return some of the samples, which share what was seen before."""
    return Candidates(
        images=batch.images[part],
        seeds=batch.seeds[part],
        inputs={name: values[part] for name, values in batch.inputs.items()},
        labels=None if batch.labels is None else batch.labels[part],
        sha256=batch.sha256[part],
        seen=batch.seen,
    )


def enlarged(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return uint8 [N, H, W, 1] in another size."""
    pictures = [Image.fromarray(image[..., 0]).resize((size, size)) for image in images]
    return np.stack([np.asarray(picture, np.uint8)[..., None] for picture in pictures])


HOOKS = """
import numpy as np

def dark(images, seeds, inputs):
    assert images.dtype == np.uint8 and seeds.dtype == np.int64
    return [None if image.mean() > 30 else f"too dark: {seed}"
            for image, seed in zip(images, seeds)]

def by_class(images, seeds, inputs):
    return np.array([None if label else "a zero" for label in inputs["class_label"]], object)

def one_answer(images, seeds, inputs):
    return [None]

def booleans(images, seeds, inputs):
    return [True] * len(images)

def nothing(images, seeds, inputs):
    pass

def raising(images, seeds, inputs):
    return 1 / 0

def leaving(images, seeds, inputs):
    raise SystemExit(3)

def wordy(images, seeds, inputs):
    print("in the way")
    return ["x" * 5000, "half of \\ud800", None]

def scribbling(images, seeds, inputs):
    images[:] = 0
    inputs["class_label"] = None
    return [None] * len(images)

class Judge:
    def __call__(self, images, seeds, inputs):
        return [None] * len(images)

judge = Judge()
"""
