"""What a request may carry, checked; see docs/contract.md for the tensors.

Used by the Triton front model, by the stream model and by the local transport, so that all of them
refuse the same things with the same words.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.kinds.formats import Format, format_from_text
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.kinds.picture import SideRange
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import GeneratorSpec, Route

# Keys in the parameters of a served model's config.pbtxt.
MODEL_DIGEST = "latentry.model_digest"
BUILD = "latentry.build"
BUILD_DIGEST = "latentry.build_digest"
SPEC = "latentry.spec"
ENGINE_CLASS = "latentry.engine_class"
THREADS = "latentry.threads"
# And of its stream model's.
STREAM_OF = "latentry.stream_of"
MAX_BATCH_SIZE = "latentry.max_batch_size"
MAX_QUEUE_SIZE = "latentry.max_queue_size"

STREAM_SUFFIX = ".stream"
"""What the name of a generator's stream model ends in; generators' own names hold no dot."""

MAX_STREAMED_SAMPLES = 4096
MAX_STREAMED_BYTES = 8 * 2**20
LONGEST_TEXT = 256

# Request parameters. A server that shuts down still takes a stream model's request for one of its
# chunks, and a client's request that goes on with an open stream; for those to come it waits.
FROM_STREAM = "latentry_from_stream"
CONTINUES = "continues"
TO_BE_CONTINUED = "to_be_continued"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Rows:
    """A checked request: ``count`` samples.

    Attributes:
        count: Number of samples.
        seeds: int64 [count]; None where no latent is drawn.
        inputs: The rows [count, ...] of every input that takes part, given or by default; not of
            the latents that the seeds draw.
        image_format: What is asked for.
    """

    count: int
    seeds: NDArray[np.int64] | None
    inputs: dict[str, NDArray[Any]]
    image_format: Format


def rows_from_request(spec: GeneratorSpec, request: Arrays, *, most: int) -> Rows:
    """Check ``request`` (tensor name to array, the first axis being samples).

    Args:
        spec: What the generator takes.
        request: Tensors as they came.
        most: The largest number of samples that is allowed.

    Raises:
        BadRequest: Naming the tensor and the row, what was given and what is allowed.
    """
    count = _count_rows(spec, request, most)
    image_format = _format(request.get("format"))
    for output in spec.outputs:
        output.check_format(image_format)
    given = frozenset(request).difference(("seed", "format"))
    spec.check_known(given)
    route = spec.route(given)
    _check_reached(spec, given, route)
    seeds = _seeds(spec, request.get("seed"), given, route)
    inputs = {}
    for item in route.inputs:
        if (values := request.get(item.name)) is not None:
            item.check(values)
        elif item in route.drawn:
            continue
        elif (row := item.default_row()) is None:
            raise BadRequest(f"{item.name} is required by this model; it takes {item.allowed}")
        else:
            values = np.repeat(row[None], count, axis=0)
        inputs[item.name] = values
    check_sizes(spec, inputs)
    return Rows(count, seeds, inputs, image_format)


def input_row_bytes(spec: GeneratorSpec, given: Iterable[str]) -> int:
    """Return how much one sample's tensors take on their way in, with these inputs."""
    items = [item for name in given if (item := spec.find(name))]
    sizes = [math.prod(item.largest_row_shape) * np.dtype(item.dtype).itemsize for item in items]
    return sum(sizes) + np.dtype(np.int64).itemsize  # the seed


def most_streamed_samples(
    spec: GeneratorSpec, given: Iterable[str], image_format: Format, max_batch_size: int
) -> int:
    """Return how many samples one stream request may carry.

    4,096, but no more than 8 MiB of output and as much of input; one largest batch in any case.
    """
    largest = max(spec.row_bytes(image_format), input_row_bytes(spec, given))
    return max(max_batch_size, min(MAX_STREAMED_SAMPLES, MAX_STREAMED_BYTES // largest))


def check_text(name: str, value: Any) -> str:
    """Return the text in an element of a BYTES tensor.

    Raises:
        BadRequest: It is longer than any text that means something, or no UTF-8.
    """
    if not isinstance(value, bytes):
        value = str(value).encode(errors="replace")
    if len(value) > LONGEST_TEXT:
        raise BadRequest(f"{name} holds {len(value):,} bytes; it takes at most {LONGEST_TEXT}")
    try:
        text: str = value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{name} holds {value!r}, which is no UTF-8 text") from None
    return text


def check_wire_seeds(seeds: NDArray[Any]) -> None:
    """Check int64 ``seeds`` of any shape; raises BadRequest naming the first bad row."""
    if seeds.dtype != np.int64:
        raise BadRequest(f"seed has dtype {seeds.dtype}; seeds travel as int64")
    bad = (seeds < 0) | (seeds > MAX_SEED)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise BadRequest(
            f"seed in row {row} is {seeds[row].item()}; a seed is an integer from 0 to {MAX_SEED}"
        )


def _count_rows(spec: GeneratorSpec, request: Arrays, most: int) -> int:
    counts = {name: len(array) for name, array in request.items()}
    if not counts:
        needed = "seed" if spec.takes_seed else f"one of {spec.takes}"
        raise BadRequest(f"the request carries no tensors; send at least {needed}")
    count = next(iter(counts.values()))
    if any(other != count for other in counts.values()):
        raise BadRequest(f"tensors differ in their number of rows: {counts}; one row is one sample")
    if not 1 <= count <= most:
        raise BadRequest(f"the request has {count} rows; this model takes 1 to {most}")
    return count


def check_sizes(spec: GeneratorSpec, inputs: Arrays) -> None:
    """Refuse pictures of different sizes where their sides have one range: they share it.

    Raises:
        BadRequest: Naming both.
    """
    sides: dict[tuple[int, SideRange], tuple[str, int]] = {}
    for item in spec.free_inputs:
        for axis, side in ((1, item.height), (2, item.width)):
            if item.name not in inputs or not isinstance(side, SideRange):
                continue
            length = inputs[item.name].shape[axis]
            other, found = sides.setdefault((axis, side), (item.name, length))
            if found != length:
                what = "high" if axis == 1 else "wide"
                raise BadRequest(
                    f"{item.name} is {length} pixels {what} and {other} {found}; they have one size"
                )


def _check_reached(spec: GeneratorSpec, given: frozenset[str], route: Route) -> None:
    """Refuse what would be checked and then used by nobody."""
    for name in sorted(given - route.reached):
        around = sorted(
            made
            for stage in spec.pipeline
            if stage not in route.stages
            for made in stage.gives
            if made in given
        )
        if not around:
            raise BadRequest(_why_it_cannot_be_given(spec, name, given))
        raise BadRequest(
            f"{name} acts in a network that {', '.join(around)} goes around; leave it out, or "
            f"{', '.join(around)}"
        )


def _why_it_cannot_be_given(spec: GeneratorSpec, name: str, given: frozenset[str]) -> str:
    """Return why a stage that makes ``name`` runs all the same."""
    others = next(
        sorted(set(stage.gives) - given) for stage in spec.pipeline if name in stage.gives
    )
    more = ", or give those, too" if all(map(spec.find, others)) else ""
    return (
        f"{name} is made by a stage that runs for {', '.join(others)} all the same; leave {name} "
        f"out{more}"
    )


def _seeds(
    spec: GeneratorSpec, seeds: NDArray[Any] | None, given: frozenset[str], route: Route
) -> NDArray[np.int64] | None:
    if seeds is None:
        if route.drawn:
            drawn = ", ".join(item.name for item in route.drawn)
            raise BadRequest(f"seed is required, as it draws {drawn}; or give {drawn} itself")
        return None
    if not spec.takes_seed:
        raise BadRequest(f"this model takes no seed; it takes {spec.takes}")
    if not route.drawn:
        latents = sorted(n for n in given if spec.input_of(n, LatentInput))
        raise BadRequest(
            f"seed and {' and '.join(latents)} were given; nothing is left for seed to draw, so "
            "give one of them"
        )
    if seeds.shape[1:] != (1,):
        raise BadRequest(f"seed has shape {list(seeds.shape)}; it takes one integer a row: [N, 1]")
    check_wire_seeds(seeds)
    return seeds[:, 0]


def _format(values: NDArray[Any] | None) -> Format:
    if values is None:
        return Format.RAW
    texts = {check_text("format", value) for value in values.flat}
    if len(texts) != 1:
        raise BadRequest(f"format differs inside one request: {sorted(texts)}; give one for all")
    return format_from_text(texts.pop())
