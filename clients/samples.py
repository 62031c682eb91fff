"""From a caller's arguments to checked samples, and from those to wire requests; pure.

Every rule about what a request may carry is ``latentry.serving``'s: arguments are brought into
wire form here and then go through the very check that the server makes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from latentry.clients.arrays import converting, integer, integers, numbers, without_generators
from latentry.contract.errors import BadRequest
from latentry.contract.seeds import MAX_SEED, check_seed, check_seeds, draw_seeds
from latentry.contract.spec import Input
from latentry.contract.transport import ModelInfo
from latentry.contract.wire import (
    MAX_STREAMED_SAMPLES,
    Format,
    Rows,
    format_from_text,
    most_streamed_samples,
    row_bytes,
    rows_from_request,
)

MAX_RESULT_BYTES = 2**30
MAX_SAMPLES = 2**24

# Each of them may also be an array of any library; see latentry.clients.arrays.
Seeds = SupportsIndex | Iterable[Any]
ClassLabels = SupportsIndex | Iterable[Any]
Numbers = SupportsFloat | Iterable[Any]
Latents = Iterable[Any]

_ROWS = "rows of numbers"
_ALLOWED = {"seeds": f"an integer from 0 to {MAX_SEED}, or several", "z": _ROWS, "w": _ROWS}


@dataclass(frozen=True)
class CallerArguments:
    """What a caller gives to ``generate`` or ``stream``, unchecked; see :meth:`Client.generate`."""

    seeds: Seeds | None = None
    n: SupportsIndex | None = None
    class_label: ClassLabels | None = None
    truncation_psi: Numbers | None = None
    z: Latents | None = None
    w: Latents | None = None
    format: str = Format.RAW

    @property
    def latent(self) -> tuple[str, Any]:
        """The one latent that was given, as (name of the argument, its value).

        Raises:
            BadRequest: None was given, or several.
        """
        names = ("seeds", "n", "z", "w")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(given) != 1:
            what = " and ".join(given) if given else "none"
            verb = "were" if len(given) > 1 else "was"
            raise BadRequest(f"exactly one of seeds, n, z, w must be given; {what} {verb}")
        return next(iter(given.items()))

    @property
    def controls(self) -> dict[str, Any]:
        """The controls that were given, by role."""
        controls = {"class_label": self.class_label, "truncation_psi": self.truncation_psi}
        return {name: value for name, value in controls.items() if value is not None}


@dataclass(frozen=True)
class CheckedSamples:
    """Checked samples of one model, with the defaults of left-out controls filled in."""

    info: ModelInfo
    rows: Rows

    @property
    def seeds(self) -> NDArray[np.int64] | None:
        """The samples' seeds, int64 [N]; None where latents were given."""
        return self.rows.values[:, 0] if self.rows.latent == "seed" else None


def samples_from_arguments(
    info: ModelInfo, arguments: CallerArguments, *, max_bytes: int | None = None
) -> CheckedSamples:
    """Return the checked samples that ``arguments`` ask of the model ``info``.

    Args:
        info: The model.
        arguments: What the caller gave.
        max_bytes: Refuse a result larger than this.

    Raises:
        BadRequest: Naming the argument, what it holds and what is allowed.
    """
    image_format = format_from_text(arguments.format)
    kind, value = arguments.latent
    if kind == "n":
        value = integer("n", value, "the number of samples, an integer from 1")
        _check_size(info, value, image_format, max_bytes)
    else:
        most = _most_generated(info, kind, image_format, max_bytes)
        with converting(kind, _ALLOWED[kind]):
            given = without_generators(value, most=most + 1)
            sized = isinstance(given, Sized) and getattr(given, "ndim", True)
            count = len(given) if sized else 1
        _check_size(info, count, image_format, max_bytes)
        if given is not value and count > most:
            raise BadRequest(f"{kind} gives more than {most} rows; give an array, or fewer a call")
        value = given
    request = _latents(kind, value)
    count = len(next(iter(request.values())))
    _check_size(info, count, image_format, max_bytes)
    for name, control in arguments.controls.items():
        request[name] = _control(info.spec.find(name), name, control, count)
    if image_format is not Format.RAW:
        request["format"] = _format_rows(image_format, count)
    return CheckedSamples(info, rows_from_request(info.spec, request, most=max(count, 1)))


def unary_requests(samples: CheckedSamples) -> list[dict[str, NDArray[Any]]]:
    """Return the samples as unary requests, each no larger than the model's largest batch."""
    size = samples.info.max_batch_size
    return [
        _unary_request(samples.rows, slice(start, start + size))
        for start in range(0, samples.rows.count, size)
    ]


def samples_per_stream_request(samples: CheckedSamples) -> int:
    """Return how many samples one stream request carries (docs/contract.md, Streams)."""
    info, rows = samples.info, samples.rows
    return most_streamed_samples(info.spec, rows.latent, rows.image_format, info.max_batch_size)


def stream_requests(
    samples: CheckedSamples, start: int = 0, chunk_size: int | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples from index ``start`` as requests to ``generate_stream``, in order."""
    size = samples_per_stream_request(samples)
    for first in range(start, samples.rows.count, size):
        yield _stream_request(samples, slice(first, first + size), chunk_size)


def check_chunk_size(chunk_size: SupportsIndex | None) -> int | None:
    """Return ``chunk_size`` if a stream may have it.

    Raises:
        BadRequest: It is no integer from 1 to 4,096.
    """
    if chunk_size is None:
        return None
    allowed = f"an integer from 1 to {MAX_STREAMED_SAMPLES}"
    size = integer("chunk_size", chunk_size, allowed)
    if not 1 <= size <= MAX_STREAMED_SAMPLES:
        raise BadRequest(f"chunk_size={size}; it takes {allowed}")
    return size


def _check_size(info: ModelInfo, count: int, image_format: Format, max_bytes: int | None) -> None:
    if count > MAX_SAMPLES:
        raise BadRequest(f"{count} samples are more than one call takes; it takes {MAX_SAMPLES}")
    size = count * row_bytes(info.spec, image_format)
    if max_bytes is not None and size > max_bytes:
        height, width, channels = info.spec.image.row_shape
        raise BadRequest(
            f"{count} images of {height} x {width} x {channels} are {size / 2**30:.1f} GiB; one "
            f"result holds up to {max_bytes / 2**30:g} GiB. Use stream(...), or `latentry "
            "stream`, which takes the same arguments and gives the images in chunks"
        )


def _most_generated(info: ModelInfo, kind: str, image_format: Format, max_bytes: int | None) -> int:
    """Return how many seeds or rows are taken from what does not tell its length."""
    most = MAX_SAMPLES
    if kind != "seeds":
        item = info.spec.find(kind)
        if item is None:
            raise BadRequest(f"this model takes no {kind}; it takes {info.spec.takes}")
        most = min(most, MAX_RESULT_BYTES // (4 * math.prod(item.row_shape)))
    if max_bytes is not None:
        most = min(most, max_bytes // row_bytes(info.spec, image_format))
    return most


def _latents(kind: str, value: Any) -> dict[str, NDArray[Any]]:
    if kind == "seeds":
        return {"seed": _seeds(value)[:, None]}
    if kind == "n":
        return {"seed": draw_seeds(value)[:, None]}
    return {kind: numbers(kind, value, _ALLOWED[kind], most=MAX_SAMPLES + 1)}


def _seeds(seeds: Any) -> NDArray[np.int64]:
    if isinstance(seeds, range) and seeds:
        # A range is monotonic, so its ends vouch for what lies between.
        check_seed(seeds[0])
        check_seed(seeds[-1])
        return np.arange(seeds.start, seeds.stop, seeds.step, dtype=np.int64)
    array = integers("seeds", seeds, _ALLOWED["seeds"], most=MAX_SAMPLES + 1)
    if array.ndim > 1:
        raise BadRequest(f"seeds has shape {list(array.shape)}; give one seed, or a flat list")
    return check_seeds(array)


def _control(item: Input | None, name: str, value: Any, count: int) -> NDArray[Any]:
    """Return a control as [count, 1], one value being for all samples."""
    if item is None:
        return np.zeros((count, 1))  # the model has no such control, and the check says so
    convert = integers if item.dtype is np.int64 else numbers
    array: NDArray[Any] = convert(name, value, item.allowed, most=count + 1)
    if array.ndim == 0:
        return np.full((count, 1), array)
    if array.shape not in ((count,), (count, 1)):
        raise BadRequest(
            f"{name} has shape {list(array.shape)} for {count} samples; "
            "give one value for all, or one for each"
        )
    return array.reshape(count, 1)


def _format_rows(image_format: Format, count: int) -> NDArray[Any]:
    return np.full((count, 1), image_format.value.encode(), np.object_)


def _unary_request(rows: Rows, part: slice) -> dict[str, NDArray[Any]]:
    request = {rows.latent: rows.values[part]}
    request.update((name, values[part]) for name, values in rows.controls.items())
    if rows.image_format is not Format.RAW:
        request["format"] = _format_rows(rows.image_format, len(request[rows.latent]))
    return request


def _stream_request(
    samples: CheckedSamples, part: slice, chunk_size: int | None
) -> dict[str, NDArray[Any]]:
    rows = samples.rows
    request = {"model": _text(samples.info.name)}
    if rows.latent == "seed":
        request.update(_stream_seeds(rows.values[part, 0]))
    else:
        request[rows.latent] = rows.values[part]
    for name, values in rows.controls.items():
        piece = values[part]
        request[name] = piece[:1] if (piece == piece[0]).all() else piece
    if chunk_size is not None:
        request["chunk_size"] = np.array([chunk_size], np.int64)
    if rows.image_format is not Format.RAW:
        request["format"] = _text(rows.image_format.value)
    return request


def _stream_seeds(seeds: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    if len(seeds) > 1 and (np.diff(seeds) == 1).all():
        return {"seed": seeds[:1], "count": np.array([len(seeds)], np.int64)}
    return {"seed": seeds}


def _text(text: str) -> NDArray[Any]:
    return np.array([text.encode()], np.object_)
