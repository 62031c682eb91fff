"""What a request may carry, checked; see docs/contract.md for the tensors.

Used by the Triton front model, by the stream model and by the local transport, so that all of them
refuse the same things with the same words.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import LATENT_ROLES, GeneratorSpec, Role

# Keys in the parameters of a served model's config.pbtxt.
MODEL_DIGEST = "latentry.model_digest"
SPEC = "latentry.spec"
ENGINE_CLASS = "latentry.engine_class"
THREADS = "latentry.threads"

STREAM_MODEL = "generate_stream"
MAX_STREAMED_SAMPLES = 4096
MAX_STREAMED_BYTES = 8 * 2**20
LONGEST_TEXT = 256

# Request parameters. A server that shuts down still takes a stream model's request for one of its
# chunks, and a client's request that goes on with an open stream; for those to come it waits.
FROM_STREAM = "latentry_from_stream"
CONTINUES = "continues"
TO_BE_CONTINUED = "to_be_continued"

Arrays = Mapping[str, NDArray[Any]]


class Format(StrEnum):
    """What a request gets back; ``raw`` and ``float`` are tensors, the others encoded files."""

    RAW = "raw"
    FLOAT = "float"
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def encoded(self) -> bool:
        """Whether images of this format travel as files."""
        return self not in (Format.RAW, Format.FLOAT)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors of an answer.

        ``image`` is uint8 [N, H, W, C], ``sample`` float32 [N, C, H, W], ``encoded`` N files.
        """
        if self.encoded:
            return ("encoded",)
        return ("image", "sample") if self is Format.FLOAT else ("image",)


FILE_FORMATS = tuple(item for item in Format if item.encoded)


def format_from_text(text: str) -> Format:
    """Return the format called ``text``.

    Raises:
        BadRequest: There is no such format; the message lists those that exist.
    """
    try:
        return Format(text)
    except ValueError:
        raise BadRequest(f"format {text!r} is unknown; use one of {', '.join(Format)}") from None


@dataclass(frozen=True)
class Rows:
    """A checked request: ``count`` samples.

    Attributes:
        count: Number of samples.
        latent: ``seed``, ``z`` or ``w``: which of them the request carries.
        values: The latent's values [count, ...].
        controls: The values [count, 1] of every control that the computation takes.
        image_format: What is asked for.
    """

    count: int
    latent: str
    values: NDArray[Any]
    controls: dict[str, NDArray[Any]]
    image_format: Format


def rows_from_request(spec: GeneratorSpec, request: Arrays, *, most: int) -> Rows:
    """Check ``request`` (tensor name to array, the first axis being samples).

    Raises:
        BadRequest: Naming the tensor and the row, what was given and what is allowed.
    """
    count = _count_rows(request, most)
    latent = _latent(spec, request)
    controls = _controls(spec, request, latent, count)
    for name in request:
        if name not in (latent, "format", *controls):
            raise BadRequest(f"this model takes no {name}; it takes {spec.takes}")
    image_format = _format(request.get("format"))
    return Rows(count, latent, request[latent], controls, image_format)


def row_bytes(spec: GeneratorSpec, image_format: Format) -> int:
    """Return how much one sample's answer takes, at most; encoded files count as raw."""
    # Every element travels as one uint8 and, in the network's own output, as one float32.
    return spec.image.row_bytes * (5 if "sample" in image_format.tensors else 1)


def input_row_bytes(spec: GeneratorSpec, latent: str) -> int:
    """Return how much one sample's tensors take on their way in, with this latent."""
    item = spec.find(latent)
    shapes = [item.row_shape if item else (2,), *((2,) for _ in spec.controls)]  # int64: 2 x 4
    return 4 * sum(math.prod(shape) for shape in shapes)


def most_streamed_samples(
    spec: GeneratorSpec, latent: str, image_format: Format, max_batch_size: int
) -> int:
    """Return how many samples one stream request may carry.

    4,096, but no more than 8 MiB of output and as much of input; one largest batch in any case.
    """
    largest = max(row_bytes(spec, image_format), input_row_bytes(spec, latent))
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


def _count_rows(request: Arrays, most: int) -> int:
    counts = {name: len(array) for name, array in request.items()}
    if not counts:
        raise BadRequest("the request carries no tensors; send at least seed")
    count = next(iter(counts.values()))
    if any(other != count for other in counts.values()):
        raise BadRequest(f"tensors differ in their number of rows: {counts}; one row is one sample")
    if not 1 <= count <= most:
        raise BadRequest(f"the request has {count} rows; this model takes 1 to {most}")
    return count


def _latent(spec: GeneratorSpec, request: Arrays) -> str:
    given = [name for name in ("seed", *LATENT_ROLES) if name in request]
    allowed = ["seed", *(role for role in LATENT_ROLES if spec.find(role))]
    if len(given) != 1:
        what = " and ".join(given) if given else "none"
        raise BadRequest(f"exactly one of {', '.join(allowed)} must be given; {what} was")
    latent = given[0]
    item = spec.find(latent)
    if latent == "seed":
        if request[latent].shape[1:] != (1,):
            shape = list(request[latent].shape)
            raise BadRequest(f"seed has shape {shape}; it takes one integer a row: [N, 1]")
        check_wire_seeds(request[latent])
    elif item is None:
        raise BadRequest(f"this model takes no {latent}; it takes {spec.takes}")
    else:
        item.check(request[latent])
    return latent


def _controls(
    spec: GeneratorSpec, request: Arrays, latent: str, count: int
) -> dict[str, NDArray[Any]]:
    controls = {}
    for item in spec.controls:
        values = request.get(item.role)
        if item.role == Role.CLASS_LABEL and latent == Role.W:
            if values is not None:
                raise BadRequest(
                    "class_label acts in the mapping network, which w goes around; leave it out"
                )
            continue
        default = getattr(item, "default", None)
        if values is not None:
            item.check(values)
        elif default is None:
            raise BadRequest(f"{item.role} is required by this model; it takes {item.allowed}")
        else:
            values = np.full((count, 1), default, item.dtype)
        controls[str(item.role)] = values
    return controls


def _format(values: NDArray[Any] | None) -> Format:
    if values is None:
        return Format.RAW
    texts = {check_text("format", value) for value in values.flat}
    if len(texts) != 1:
        raise BadRequest(f"format differs inside one request: {sorted(texts)}; give one for all")
    return format_from_text(texts.pop())
