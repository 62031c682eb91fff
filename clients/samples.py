"""From a caller's arguments to checked samples, and from those to wire requests; pure.

Every rule about what a request may carry is ``latentry.serving``'s: arguments are brought into
wire form here and then go through the very check that the server makes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format, format_from_text
from latentry.contract.kinds.kind import sized
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import MOST_SIDE, PixelsInput
from latentry.contract.seeds import MAX_SEED, check_seed, check_seeds, draw_seeds
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo
from latentry.contract.values.arrays import converting, integer, integers, without_generators
from latentry.contract.values.ranges import MAX_SAMPLES
from latentry.contract.wire import (
    MAX_STREAMED_SAMPLES,
    Rows,
    most_streamed_samples,
    rows_from_request,
)

MAX_RESULT_BYTES = 2**30

# Each of them may also be an array of any library; see latentry.contract.values.arrays.
Seeds = SupportsIndex | Iterable[Any]

_SEEDS = f"an integer from 0 to {MAX_SEED}, or several"
_COUNT = "the number of samples, an integer from 1"


@dataclass(frozen=True)
class CallerArguments:
    """What a caller gives to ``generate`` or ``stream``, unchecked; see :meth:`Client.generate`."""

    seeds: Seeds | None = None
    n: SupportsIndex | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    format: str = Format.RAW
    resize: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """The inputs that were given; None is as if left out."""
        return {name: value for name, value in self.inputs.items() if value is not None}


@dataclass(frozen=True)
class CheckedSamples:
    """Checked samples of one model, with the defaults of left-out inputs filled in."""

    info: ModelInfo
    rows: Rows


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
    given = arguments.given
    info.spec.check_known(given)
    _check_needs_seeds(info.spec, arguments)
    sizes = _Sizes(info, image_format, max_bytes)
    request: dict[str, NDArray[Any]] = {}
    seeds = _seeds(arguments, sizes)
    if seeds is not None:
        request["seed"] = seeds[:, None]
    read = {
        name: _read_input(info.spec, name, value, seeds, sizes, resize=arguments.resize)
        for name, value in given.items()
    }
    count = _count(seeds, read)
    sizes.check(count)
    for name, (rows, is_one) in read.items():
        request[name] = _for_all(name, rows, count, is_one=is_one)
    if not request:
        raise BadRequest(f"nothing was given; this model takes {info.spec.takes}")
    if image_format is not Format.RAW:
        request["format"] = _format_rows(image_format, count)
    return CheckedSamples(info, rows_from_request(info.spec, request, most=max(count, 1)))


@dataclass(frozen=True)
class _Sizes:
    """How much one call may ask for."""

    info: ModelInfo
    image_format: Format
    max_bytes: int | None

    def check(self, count: int) -> None:
        """Refuse ``count`` samples where they are too many, before anything is made of them."""
        if count > MAX_SAMPLES:
            raise BadRequest(
                f"{count} samples are more than one call takes; it takes {MAX_SAMPLES}"
            )
        size = count * self._row_bytes
        if self.max_bytes is not None and size > self.max_bytes:
            raise BadRequest(
                f"{count} samples of {self._shapes} are {size / 2**30:.1f} GiB; one result holds "
                f"up to {self.max_bytes / 2**30:g} GiB. Use stream(...), or `latentry stream`, "
                "which takes the same arguments and gives the samples in chunks"
            )

    def most(self, row_bytes: int) -> int:
        """Return how many rows of this size are taken from what does not tell its length."""
        most = min(MAX_SAMPLES, MAX_RESULT_BYTES // max(1, row_bytes))
        return most if self.max_bytes is None else min(most, self.max_bytes // self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return max(1, self.info.spec.row_bytes(self.image_format))

    @property
    def _shapes(self) -> str:
        return " and ".join(sized(item.raw.row_shape) for item in self.info.spec.outputs)


def _check_needs_seeds(spec: GeneratorSpec, arguments: CallerArguments) -> None:
    """Refuse seeds beside latents, and the lack of both, in a caller's words."""
    names = [n for n in ("seeds", "n") if getattr(arguments, n) is not None]
    if len(names) > 1:
        raise BadRequest("seeds and n were given; n draws seeds itself, so give one of them")
    drawn = [item.name for item in spec.route(frozenset(arguments.given)).drawn]
    if drawn and not names:
        raise BadRequest(
            f"give seeds or n, from which {', '.join(drawn)} is drawn, or {', '.join(drawn)} itself"
        )
    if names and not spec.takes_seed:
        raise BadRequest(f"this model takes no {names[0]}; it takes {spec.takes}")
    if names and not drawn:
        latents = [n for n in arguments.given if spec.input_of(n, LatentInput)]
        raise BadRequest(
            f"{names[0]} and {' and '.join(latents)} were given; nothing is left for {names[0]} "
            "to draw, so give one of them"
        )


def _seeds(arguments: CallerArguments, sizes: _Sizes) -> NDArray[np.int64] | None:
    if arguments.n is not None:
        count = integer("n", arguments.n, _COUNT)
        sizes.check(count)
        return draw_seeds(count)
    if arguments.seeds is None:
        return None
    seeds = _sized("seeds", arguments.seeds, _SEEDS, sizes, most=sizes.most(1), in_row=0)
    if isinstance(seeds, range) and seeds:
        # A range is monotonic, so its ends vouch for what lies between.
        check_seed(seeds[0])
        check_seed(seeds[-1])
        return np.arange(seeds.start, seeds.stop, seeds.step, dtype=np.int64)
    array = integers("seeds", seeds, _SEEDS, most=MAX_SAMPLES + 1)
    if array.ndim > 1:
        raise BadRequest(f"seeds has shape {list(array.shape)}; give one seed, or a flat list")
    return check_seeds(array)


def _sized(name: str, value: Any, allowed: str, sizes: _Sizes, *, most: int, in_row: int) -> Any:
    """Return ``value``, as a list where its length is not known.

    Args:
        name: Of the argument.
        value: What was given.
        allowed: What may be given, for the message.
        sizes: How much one call may ask for.
        most: So many elements are taken from what does not tell its length.
        in_row: Up to so many elements may be those of one row.

    Raises:
        BadRequest: It is longer than a call may ask for; nothing has been made of it by then.
    """
    with converting(name, allowed):
        given = without_generators(value, most=most + 1)
        # The length of a text, or of a file's bytes, says nothing of samples.
        sized = isinstance(given, Sized) and not isinstance(given, str | bytes | bytearray)
        count = len(given) if sized and getattr(given, "ndim", True) else 1
    if count > (in_row if given is value else most):
        sizes.check(count)
    if given is not value and count > most:
        raise BadRequest(f"{name} gives more than {most} rows; give an array, or fewer a call")
    return given


def _read_input(
    spec: GeneratorSpec,
    name: str,
    value: Any,
    seeds: NDArray[np.int64] | None,
    sizes: _Sizes,
    *,
    resize: bool,
) -> tuple[NDArray[Any], bool]:
    """Return the rows of an input, and whether it is one for all."""
    item = spec.find(name)
    if item is None:
        raise BadRequest(f"this model takes no {name}; it takes {spec.takes}")
    rows_from_value, in_row = item.rows_from_value, item.row_shape[0]
    if resize and isinstance(item, PixelsInput):
        rows_from_value, in_row = item.resized_rows, MOST_SIDE
    if seeds is not None:
        return rows_from_value(value, most=len(seeds))
    row_bytes = math.prod(item.largest_row_shape) * np.dtype(item.dtype).itemsize
    most = sizes.most(row_bytes)
    given = _sized(name, value, item.allowed, sizes, most=most, in_row=in_row)
    return rows_from_value(given, most=most)


def _count(seeds: NDArray[np.int64] | None, read: Mapping[str, tuple[NDArray[Any], bool]]) -> int:
    """Return how many samples are asked for: as many as seeds, else as rows of some input."""
    if seeds is not None:
        return len(seeds)
    counts = {len(rows) for rows, is_one in read.values() if not is_one}
    if len(counts) > 1:
        lengths = {name: len(rows) for name, (rows, is_one) in read.items() if not is_one}
        raise BadRequest(f"inputs differ in their number of rows: {lengths}; one row is one sample")
    return counts.pop() if counts else 1


def _for_all(name: str, rows: NDArray[Any], count: int, *, is_one: bool) -> NDArray[Any]:
    if is_one:
        return np.repeat(rows, count, axis=0)
    if len(rows) != count:
        raise BadRequest(
            f"{name} has {len(rows)} rows for {count} samples; "
            "give one value for all, or one for each"
        )
    return rows


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
    return most_streamed_samples(info.spec, rows.inputs, rows.image_format, info.max_batch_size)


def stream_requests(
    samples: CheckedSamples, start: int = 0, chunk_size: int | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples from index ``start`` as stream requests, in order."""
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


def _format_rows(image_format: Format, count: int) -> NDArray[Any]:
    return np.full((count, 1), image_format.value.encode(), np.object_)


def _unary_request(rows: Rows, part: slice) -> dict[str, NDArray[Any]]:
    request = {} if rows.seeds is None else {"seed": rows.seeds[part, None]}
    request |= {name: values[part] for name, values in rows.inputs.items()}
    if rows.image_format is not Format.RAW:
        count = len(range(rows.count)[part])
        request["format"] = _format_rows(rows.image_format, count)
    return request


def _stream_request(
    samples: CheckedSamples, part: slice, chunk_size: int | None
) -> dict[str, NDArray[Any]]:
    rows = samples.rows
    request: dict[str, NDArray[Any]] = {}
    if rows.seeds is not None:
        request.update(_stream_seeds(rows.seeds[part]))
    for name, values in rows.inputs.items():
        piece = values[part]
        # Without seeds, the rows themselves say how many samples there are.
        is_one = rows.seeds is not None and bool((piece == piece[0]).all())
        request[name] = piece[:1] if is_one else piece
    if chunk_size is not None:
        request["chunk_size"] = np.array([chunk_size], np.int64)
    if rows.image_format is not Format.RAW:
        request["format"] = np.array([rows.image_format.value.encode()], np.object_)
    return request


def _stream_seeds(seeds: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    if len(seeds) > 1 and (np.diff(seeds) == 1).all():
        return {"seed": seeds[:1], "count": np.array([len(seeds)], np.int64)}
    return {"seed": seeds}
