"""Asks Triton for images: the same bytes to PyTriton, to a bare Triton and to Latentry."""

import struct
from collections.abc import Callable, Iterator

import numpy as np
from peers.catalogue import MODEL
from peers.http_target import OnImage

from latentry.clients.transports.codec import infer_request
from latentry.profiling.load.unary_calls import UnaryCalls

# The seed is the last thing in a serialized request, and the image in a serialized answer.
_SEED = struct.Struct("<q")
_HEAD: bytes = infer_request(MODEL, {"seed": np.zeros((1, 1), np.int64)}).SerializeToString()[
    : -_SEED.size
]


def request(seed: int) -> bytes:
    """Return a serialized request for one image."""
    return _HEAD + _SEED.pack(seed)


class GrpcTarget:
    """Sends one request after another over one connection; as :class:`HttpTarget`."""

    def __init__(
        self,
        address: tuple[str, int],
        seeds: Iterator[int],
        *,
        image_bytes: int,
        on_image: OnImage | None = None,
    ) -> None:
        self._calls = UnaryCalls(f"{address[0]}:{address[1]}")
        self._seeds = seeds
        self._image_bytes = image_bytes
        self._on_image = on_image

    def send(self, done: Callable[[Exception | None], None]) -> None:
        """Ask for the image of the next seed; ``done`` is called once, from the reading thread."""
        seed = next(self._seeds)

        def finish(error: Exception | None, answer: bytes) -> None:
            if error is None and len(answer) < self._image_bytes:
                error = ValueError(f"{len(answer)} bytes hold no image")
            elif error is None and self._on_image is not None:
                self._on_image(seed, answer[-self._image_bytes :])
            done(error)

        self._calls.start(request(seed), finish)

    def close(self) -> None:
        """Close the connection."""
        self._calls.close()
