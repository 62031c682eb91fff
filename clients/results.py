"""What a client gives back: images with everything that is needed to draw them again."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentry.clients.samples import CheckedSamples
from latentry.contract.errors import LatentryError, ServerFault
from latentry.contract.files import write_atomic
from latentry.contract.images import (
    Uint8,
    decode_image,
    encode_image,
    grid_from_images,
    pil_from_uint8,
    png_with_text,
)
from latentry.contract.spec import Role
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.wire import Format, format_from_text


@dataclass(frozen=True)
class Health:
    """Whether a server is ready to draw; true in a condition when it is.

    Attributes:
        ready: It answers, every model is ready, and there is at least one generator.
        reason: What is in the way, or what is being served.
        models: Names of the generators being served.
        error: What a question ended with, where the server gave no answer.
    """

    ready: bool
    reason: str
    models: tuple[str, ...] = ()
    error: LatentryError | None = None

    def __bool__(self) -> bool:
        return self.ready


def health_from_names(ready: bool, names: Sequence[str]) -> Health:
    """Return the health of a server that answers and serves ``names``."""
    if not ready:
        return Health(False, "the server answers, but not every model is ready", tuple(names))
    if not names:
        return Health(False, "the server answers, but serves no generator")
    return Health(True, f"serving {', '.join(names)}", tuple(names))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class GenerateResult:
    """Images and their identity; the arrays are the caller's own.

    ``len(result)`` is the number of images, iteration gives each as uint8 [H, W, C].

    Attributes:
        info: The model that drew them.
        seeds: int64 [N]; None where ``z`` or ``w`` was given.
        controls: Every control that was in effect, by role, each [N].
        samples: float32 [N, C, H, W], the network's own output; with format ``float`` only.
        encoded: The N files as they came; with formats ``png``, ``jpeg`` and ``webp`` only.
        format: What was asked for.
    """

    info: ModelInfo
    seeds: NDArray[np.int64] | None
    controls: Mapping[str, NDArray[Any]]
    format: Format
    encoded: list[bytes] | None = None
    samples: NDArray[np.float32] | None = None
    raw: Uint8 | None = field(default=None)

    @cached_property
    def images(self) -> Uint8:
        """uint8 [N, H, W, C]; encoded images are decoded when this is first read."""
        if self.raw is not None:
            return self.raw
        channels = self.info.spec.image.channels
        return np.stack([decode_image(data, channels) for data in self.encoded or ()])

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.info.name

    @property
    def version(self) -> str:
        """Version of the model that drew the images."""
        return self.info.version

    @property
    def model_digest(self) -> str:
        """SHA-256 that names what drew the images."""
        return self.info.model_digest

    @property
    def engine_class(self) -> str:
        """What drew the images; they are equal to the bit within one class."""
        return self.info.engine_class

    def __len__(self) -> int:
        return len(self.raw) if self.raw is not None else len(self.encoded or ())

    def __iter__(self) -> Iterator[Uint8]:
        return iter(self.images)

    def __repr__(self) -> str:
        size = " x ".join(str(length) for length in self.info.spec.image.row_shape)
        what = f"{len(self)} images of {size} from {self.model} version {self.version}"
        return f"<{type(self).__name__}: {what}>"

    def to_pil(self) -> list[Image.Image]:
        """Return the images as PIL images, grey ones with mode ``L``, others ``RGB``."""
        return [pil_from_uint8(image) for image in self.images]

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return all images in one picture, row by row; as square as possible by default."""
        return pil_from_uint8(grid_from_images(self.images, columns))

    def save(self, folder: str | Path, *, format: str | None = None) -> list[Path]:
        """Write one file an image into ``folder``, which is made where it does not exist.

        Files are named by what makes the image: ``seed0000000042.png``, with a class
        ``seed0000000042-class7.png``, with a truncation other than 1 ``...-psi0.7.png``; images of
        latents by their index, ``sample0000000.png``. Where one result holds the same sample
        again, ``-2``, ``-3`` and so on is added. A file of that name that is there already is
        replaced. PNG files carry all of it as text chunks ``latentry:seed``,
        ``latentry:model_digest`` and so on.

        Args:
            folder: Where the files go.
            format: ``png``, ``jpeg`` or ``webp``; None means as they came, and PNG for tensors.

        Returns:
            The files' paths, in the order of the images.

        Raises:
            BadRequest: ``format`` is no file format.
        """
        chosen = format_from_text(format) if format else self._own_file_format
        names = [f"{stem}.{chosen.value}" for stem in self._stems()]
        files = [self._file(index, chosen) for index in range(len(self))]
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = [Path(folder) / name for name in names]
        for path, data in zip(paths, files, strict=True):
            write_atomic(path, data, sync=False)
        return paths

    @property
    def _own_file_format(self) -> Format:
        return self.format if self.format.encoded else Format.PNG

    @property
    def _first_index(self) -> int:
        return 0

    def _stems(self) -> list[str]:
        stems: list[str] = []
        seen: Counter[str] = Counter()
        for index in range(len(self)):
            stem = self._stem(index)
            seen[stem] += 1
            stems.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
        return stems

    def _stem(self, index: int) -> str:
        if self.seeds is None:
            return f"sample{self._first_index + index:07d}"
        stem = f"seed{self.seeds[index]:010d}"
        if Role.CLASS_LABEL in self.controls:
            stem += f"-class{self.controls[Role.CLASS_LABEL][index]}"
        if Role.TRUNCATION_PSI in self.controls:
            psi = self.controls[Role.TRUNCATION_PSI][index]
            stem += "" if psi == 1 else f"-psi{psi!s}"
        return stem

    def _file(self, index: int, image_format: Format) -> bytes:
        if image_format is not self.format or self.encoded is None:
            data = encode_image(self.images[index], image_format)
        else:
            data = self.encoded[index]
        return png_with_text(data, self._text(index)) if image_format is Format.PNG else data

    def _text(self, index: int) -> dict[str, str]:
        seed = {} if self.seeds is None else {"seed": str(self.seeds[index])}
        controls = {name: str(values[index]) for name, values in self.controls.items()}
        model = {
            "model": self.model,
            "version": self.version,
            "model_digest": self.model_digest,
            "engine_class": self.engine_class,
        }
        return {f"latentry:{key}": text for key, text in {**seed, **controls, **model}.items()}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StreamChunk(GenerateResult):
    """Some of a stream's images, in order.

    Attributes:
        index: Index of the chunk's first sample in the stream.
    """

    index: int

    @property
    def _first_index(self) -> int:
        return self.index


def result_from_replies(
    samples: CheckedSamples, now: ModelInfo, replies: Sequence[Reply]
) -> GenerateResult:
    """Return the result that all parts of ``samples`` make.

    Args:
        samples: What was asked for, of the model as it was known then.
        now: The model as it is known after the replies.
        replies: The parts in order.

    Raises:
        ServerFault: A part does not hold what was asked, or nobody can say which model drew it.
    """
    samples = _drawn_samples(samples, now, replies)
    info = samples.info
    for reply in replies:
        if reply.version != info.version:
            raise ServerFault(
                f"{info.name} was replaced during the request: parts come from version "
                f"{info.version} and from version {reply.version}. Ask again"
            )
    return GenerateResult(**_fields(samples, replies, slice(0, samples.rows.count)))


def chunk_from_reply(samples: CheckedSamples, index: int, reply: Reply) -> StreamChunk:
    """Return the chunk of ``samples`` whose first sample has ``index``.

    Raises:
        ServerFault: It does not hold images of the model.
    """
    count = len(reply.outputs.get("image", reply.outputs.get("encoded", ())))
    fields = _fields(samples, [reply], slice(index, index + count))
    return StreamChunk(index=index, **fields)


def _fields(samples: CheckedSamples, replies: Sequence[Reply], part: slice) -> dict[str, Any]:
    rows = samples.rows
    count = len(range(rows.count)[part])
    shape = samples.info.spec.image.row_shape
    fields: dict[str, Any] = {
        "info": samples.info,
        "seeds": None if samples.seeds is None else samples.seeds[part],
        "controls": {name: values[part, 0] for name, values in rows.controls.items()},
        "format": rows.image_format,
    }
    if rows.image_format.encoded:
        files = _output(samples, replies, "encoded", (count,), np.object_)
        return {**fields, "encoded": files.tolist()}
    fields["raw"] = _output(samples, replies, "image", (count, *shape), np.uint8)
    if rows.image_format is Format.FLOAT:
        chw = (count, shape[2], shape[0], shape[1])
        fields["samples"] = _output(samples, replies, "sample", chw, np.float32)
    return fields


def _drawn_samples(
    samples: CheckedSamples, now: ModelInfo, replies: Sequence[Reply]
) -> CheckedSamples:
    """Return ``samples`` as of the model that gave ``replies``."""
    before = samples.info
    if all(reply.version == now.version != before.version for reply in replies):
        return CheckedSamples(now, samples.rows)
    if (now.model_digest, now.engine_class) != (before.model_digest, before.engine_class):
        raise ServerFault(f"{before.name} was replaced while it was drawing; ask again")
    return samples


def _output(
    samples: CheckedSamples,
    replies: Sequence[Reply],
    name: str,
    shape: tuple[int, ...],
    dtype: type[np.generic],
) -> NDArray[Any]:
    """Return one output of all replies as an array of the caller's own.

    What came over the wire is read-only, and torch.from_numpy, where results often go next, warns
    of such arrays.
    """
    parts = [reply.outputs.get(name) for reply in replies]
    arrays = [part for part in parts if part is not None]
    if len(arrays) != len(parts) or len({part.shape[1:] for part in arrays}) != 1:
        raise ServerFault(f"the answer of {samples.info.name} lacks {name}, or parts differ")
    whole: NDArray[Any] = np.concatenate(arrays)
    if name == "encoded":  # [N, 1] from a batched model, [N] from a stream
        whole = whole.reshape(-1)
    if whole.shape != shape or whole.dtype != dtype:
        raise ServerFault(
            f"{samples.info.name} answered {name} as {whole.dtype} {list(whole.shape)}; "
            f"{np.dtype(dtype)} {list(shape)} was expected"
        )
    return whole
