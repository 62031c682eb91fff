"""What a stream request asks for, cut into chunks; no Triton in here.

A stream has no batch axis: ``seed`` [n], or the first seed [1] with ``count`` [1]; other
inputs [1, ...] for all samples or [n, ...] one for each; see docs/contract.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format, format_from_text
from latentry.contract.seeds import seed_range
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import (
    MAX_STREAMED_SAMPLES,
    Arrays,
    check_text,
    most_streamed_samples,
    rows_from_request,
)

FIRST_CHUNK = 8


@dataclass(frozen=True)
class StreamRequest:
    """A checked stream request.

    Attributes:
        count: Number of samples.
        tensors: Unary tensors of all samples [count, ...], as the model takes them.
        image_format: What is asked for.
        chunk_size: Samples in a chunk; None leaves it to the server.
    """

    count: int
    tensors: dict[str, NDArray[Any]]
    image_format: Format
    chunk_size: int | None

    def chunks(self, max_batch_size: int) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """Yield (index of the first sample, unary request) for every chunk in order.

        Without a chunk size the first chunk is small, so that the caller sees something soon, and
        the others are the model's largest batch.
        """
        size = min(self.chunk_size or max_batch_size, max_batch_size)
        start, stop = 0, min(self.chunk_size or FIRST_CHUNK, size)
        while start < self.count:
            yield start, {name: array[start:stop] for name, array in self.tensors.items()}
            start, stop = stop, stop + size


def text_from_tensor(name: str, array: NDArray[Any]) -> str:
    """Return the text in a BYTES tensor of one element; raises BadRequest."""
    if array.size != 1:
        raise BadRequest(f"{name} takes one text, {array.size} were given")
    return check_text(name, array.flat[0])


def stream_from_request(
    spec: GeneratorSpec, request: Arrays, *, max_batch_size: int
) -> StreamRequest:
    """Check a stream request for a generator with ``spec``.

    Raises:
        BadRequest: Naming the tensor and the row, what was given and what is allowed.
    """
    given = dict(request)
    chunk_size = _chunk_size(given.pop("chunk_size", None))
    format_given = given.pop("format", np.array(["raw"]))
    image_format = format_from_text(text_from_tensor("format", format_given))
    _check_rows(spec, given)
    names = [name for name in given if name not in ("seed", "count")]
    most = most_streamed_samples(spec, names, image_format, max_batch_size)
    count = _expand_seeds(given, most)
    _check_count(count, most)
    tensors = {name: _for_all(name, array, count) for name, array in given.items()}
    rows_from_request(spec, tensors, most=count)
    if image_format is not Format.RAW:
        tensors["format"] = np.full((count, 1), str(image_format).encode(), np.object_)
    return StreamRequest(count, tensors, image_format, chunk_size)


def _check_rows(spec: GeneratorSpec, given: Arrays) -> None:
    """Check every row as it came, before one row is repeated for many samples."""
    for name, array in given.items():
        if name in ("seed", "count"):
            continue
        spec.check_known([name])
        if not array.ndim:
            raise BadRequest(f"{name} has no rows; its first dimension is 1, or one a sample")
        if item := spec.find(name):
            item.check(array)


def _expand_seeds(given: dict[str, NDArray[Any]], most: int) -> int:
    """Turn ``seed`` [n] or [1] + ``count`` into unary seeds [n, 1]; return the samples' number."""
    counts = given.pop("count", None)
    seeds = given.get("seed")
    if seeds is None:
        if counts is not None:
            raise BadRequest("count goes with seed: the first seed and how many follow from it")
        return max((len(array) for array in given.values()), default=1)
    if seeds.ndim != 1 or not seeds.size:
        raise BadRequest(f"seed has shape {list(seeds.shape)}; a stream takes [n], n from 1")
    if counts is not None:
        if counts.size != 1 or seeds.size != 1:
            raise BadRequest("count goes with one seed, the first of the range")
        _check_count(int(counts.flat[0]), most)
        seeds = seed_range(int(seeds[0]), int(counts.flat[0]))
    given["seed"] = seeds[:, None]
    return len(seeds)


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise BadRequest(
            f"the stream asks for {count} samples; one request takes 1 to {most} of this model, "
            "send several requests on one stream for more"
        )


def _chunk_size(array: NDArray[Any] | None) -> int | None:
    if array is None:
        return None
    if array.size != 1 or not 1 <= int(array.flat[0]) <= MAX_STREAMED_SAMPLES:
        raise BadRequest(
            f"chunk_size is {array.tolist()}; give one integer, 1 to {MAX_STREAMED_SAMPLES}"
        )
    return int(array.flat[0])


def _for_all(name: str, array: NDArray[Any], count: int) -> NDArray[Any]:
    if len(array) == count:
        return array
    if len(array) == 1:
        return np.repeat(array, count, axis=0)
    raise BadRequest(
        f"{name} has shape {list(array.shape)}; its first dimension is 1 or {count}, one a sample"
    )
