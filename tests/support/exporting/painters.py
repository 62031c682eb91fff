"""Generators of a few NumPy lines, as engines: one to be judged by, others broken on purpose."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specs import classes, image, make_spec, z

from latentry.contract.wire import Arrays

CLASSES = 10
SIDE = 16
SPEC = make_spec([z(6), classes(*(f"kind{n}" for n in range(CLASSES)))], [image(SIDE, SIDE)])

Samples = NDArray[np.float32]
Change = Callable[[Samples, Arrays], Samples]
_WEIGHTS = np.random.RandomState(3).randn(6 + CLASSES, SIDE // 2 * SIDE // 2 * 3) / 2.5


class Painter:
    """Paints smooth pictures of z and a class, and then does something to them.

    Rows are computed one after the other, so that none depends on others.
    """

    def __init__(self, change: Change = lambda sample, _: sample, *, level: int = 0) -> None:
        """Change samples, float32 [N, 3, 16, 16], and add ``level`` to every pixel."""
        self.engine_class = "painter"
        self._change, self._level = change, level

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Return a picture, its floats and their sum for each row."""
        sample = self._change(np.stack([_painted(row) for row in _rows(inputs)]), inputs)
        with np.errstate(invalid="ignore"):
            levels = np.clip(np.rint((sample + 1) * 127.5) + self._level, 0, 255)
            drawn = {
                "image": levels.transpose(0, 2, 3, 1).astype(np.uint8),
                "image.sample": sample,
                "watch": sample.sum(axis=(1, 2, 3), dtype=np.float32),
            }
        return {name: drawn[name] for name in outputs}


def _rows(inputs: Arrays) -> list[NDArray[np.float32]]:
    kinds = np.eye(CLASSES, dtype=np.float32)[inputs["class_label"].reshape(-1)]
    return [*np.concatenate([inputs["z"], 2 * kinds], axis=1)]


def _painted(row: NDArray[np.float32]) -> Samples:
    small = np.tanh(row @ _WEIGHTS).reshape(3, SIDE // 2, SIDE // 2)
    return small.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
