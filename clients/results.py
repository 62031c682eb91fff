"""What a client gives back: images with everything that is needed to draw them again."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentry.clients.samples import CheckedSamples
from latentry.contract.errors import BadRequest, LatentryError, ServerFault
from latentry.contract.files import write_atomic
from latentry.contract.images import (
    Uint8,
    decode_image,
    grid_from_images,
    is_png,
    pil_from_uint8,
    png_with_text,
)
from latentry.contract.kinds.formats import Format, format_from_text
from latentry.contract.kinds.kind import OutputKind, TensorType, shown_shape, sized
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.values.npy import npy_bytes


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
    """Samples and their identity; the arrays are the caller's own.

    ``result["mask"]`` is an output by its name, ``result.images`` the main picture. ``len(result)``
    is the number of samples; iteration gives each main picture as uint8 [H, W, C].

    Attributes:
        info: The model that drew them.
        seeds: int64 [N]; None where nothing was drawn from seeds.
        inputs: Every input that was in effect, by name, [N], or [N, ...] of larger rows; not the
            latents that the seeds draw.
        format: What was asked for.
        tensors: What came, by name: ``X``, with format ``float`` also ``X.sample``, and with
            formats of files ``X.encoded`` for pictures, N bytes objects.
    """

    info: ModelInfo
    seeds: NDArray[np.int64] | None
    inputs: Mapping[str, NDArray[Any]]
    format: Format
    tensors: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the output ``name`` of every sample, [N, ...].

        Raises:
            BadRequest: The model has no such output.
        """
        if name in self.tensors:
            return self.tensors[name]
        if f"{name}.encoded" in self.tensors:
            return self._decoded[name]
        outputs = ", ".join(item.name for item in self.info.spec.outputs)
        raise BadRequest(f"{self.model} gives no {name}; it gives {outputs}")

    @cached_property
    def _decoded(self) -> "_Decoded":
        return _Decoded(self.info.spec, self.tensors)

    @property
    def images(self) -> Uint8:
        """The main picture, uint8 [N, H, W, C]; encoded ones are decoded when this is first read.

        Raises:
            BadRequest: The model gives no picture.
        """
        images: Uint8 = self[self.info.spec.image.name]
        return images

    @property
    def samples(self) -> NDArray[np.float32] | None:
        """The network's own main picture, float32 [N, C, H, W]; with format ``float`` only."""
        return self.tensors.get(f"{self.info.spec.image.name}.sample")

    @property
    def encoded(self) -> list[bytes] | None:
        """The N files of the main picture as they came; with formats of files only."""
        files = self.tensors.get(f"{self.info.spec.image.name}.encoded")
        return None if files is None else files.tolist()

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
    def build(self) -> str:
        """Name of the build that drew the images, as onnxruntime-fp32."""
        return self.info.build

    @property
    def build_digest(self) -> str:
        """SHA-256 that names that build."""
        return self.info.build_digest

    @property
    def engine_class(self) -> str:
        """What drew the images; those of a build are equal to the bit within one class."""
        return self.info.engine_class

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __iter__(self) -> Iterator[Uint8]:
        return iter(self.images)

    def __repr__(self) -> str:
        shapes = (f"{item.name} {sized(item.raw.row_shape)}" for item in self.info.spec.outputs)
        what = f"{len(self)} samples ({', '.join(shapes)}) from {self.model} version {self.version}"
        return f"<{type(self).__name__}: {what}>"

    def to_pil(self) -> list[Image.Image]:
        """Return the images as PIL images, grey ones with mode ``L``, others ``RGB``."""
        return [pil_from_uint8(image) for image in self.images]

    def grid(self, columns: int | None = None) -> Image.Image:
        """Return all images in one picture, row by row; as square as possible by default."""
        return pil_from_uint8(grid_from_images(self.images, columns))

    def save(self, folder: str | Path, *, format: str | None = None) -> list[Path]:
        """Write one file a picture into ``folder``, which is made where it does not exist.

        Files are named by what makes the sample: ``seed0000000042.png``, with a class
        ``seed0000000042-class7.png``, with a truncation other than 1 ``...-psi0.7.png``; samples
        without seeds by their index, ``sample0000000.png``. Outputs beside the main picture have
        their name in it: ``seed0000000042.mask.png``, or ``seed0000000042.embedding.npy`` for what
        is no picture; label maps are always PNG. Where one result holds the same sample again,
        ``-2``, ``-3`` and so on is added. A file of that name that is there already is replaced.
        PNG files carry all of it as text chunks ``latentry:seed``,
        ``latentry:model_digest`` and so on.

        Args:
            folder: Where the files go.
            format: ``png``, ``jpeg`` or ``webp``; None means as they came, and PNG for tensors.

        Returns:
            The files' paths, output by output, in the order of the samples.

        Raises:
            BadRequest: ``format`` is no file format.
        """
        chosen = format_from_text(format) if format else self._own_file_format
        stems = self._stems()
        files: dict[str, bytes] = {}
        for item in self.info.spec.outputs:
            files |= self._files_of(item, stems, chosen)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomic(Path(folder) / name, data, sync=False)
        return [Path(folder) / name for name in files]

    def _files_of(self, item: OutputKind, stems: Sequence[str], chosen: Format) -> dict[str, bytes]:
        """Return the files of one output, by name."""
        middle = "" if item is self.info.spec.picture else f".{item.name}"
        if not any(name.endswith(".encoded") for name in item.tensors(Format.PNG)):
            rows = zip(stems, self[item.name], strict=True)
            return {f"{stem}{middle}.npy": npy_bytes(row) for stem, row in rows}
        suffix = item.file_format(chosen).value
        return {
            f"{stem}{middle}.{suffix}": self._file(item, index, chosen)
            for index, stem in enumerate(stems)
        }

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
        for item in self.info.spec.inputs:
            if item.name in self.inputs and (part := item.stem(self._row(item.name, index))):
                stem += f"-{part}"
        return stem

    def _row(self, name: str, index: int) -> NDArray[Any]:
        row: NDArray[Any] = np.atleast_1d(self.inputs[name][index])
        return row

    def _file(self, item: OutputKind, index: int, image_format: Format) -> bytes:
        came = self.tensors.get(f"{item.name}.encoded")
        is_same = item.file_format(image_format) is item.file_format(self.format)
        if is_same and came is not None:
            data: bytes = came[index]
        else:
            data = item.encode(self[item.name][index], image_format)
        return png_with_text(data, self._text(index)) if is_png(data) else data

    def _text(self, index: int) -> dict[str, str]:
        seed = {} if self.seeds is None else {"seed": str(self.seeds[index])}
        inputs = {
            item.name: item.text(self._row(item.name, index))
            for item in self.info.spec.inputs
            if item.name in self.inputs
        }
        model = {
            "model": self.model,
            "version": self.version,
            "model_digest": self.model_digest,
            "build": self.build,
            "build_digest": self.build_digest,
            "engine_class": self.engine_class,
        }
        return {f"latentry:{key}": text for key, text in {**seed, **inputs, **model}.items()}


class _Decoded(dict[str, NDArray[Any]]):
    """Outputs that came as files, each decoded when it is first asked for."""

    def __init__(self, spec: GeneratorSpec, tensors: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self._spec, self._tensors = spec, tensors

    def __missing__(self, name: str) -> NDArray[Any]:
        item = self._spec.find_output(name)
        shape = item.raw.row_shape if item else ()
        channels = shape[2] if len(shape) == 3 else 1
        files = self._tensors[f"{name}.encoded"]
        decoded: NDArray[Any] = np.stack([decode_image(data, channels) for data in files])
        decoded = decoded if len(shape) == 3 else decoded[..., 0]
        self[name] = decoded
        return decoded


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
        ServerFault: It does not hold samples of the model.
    """
    count = max((len(array) for name, array in reply.outputs.items() if name != "index"), default=0)
    fields = _fields(samples, [reply], slice(index, index + count))
    return StreamChunk(index=index, **fields)


def _fields(samples: CheckedSamples, replies: Sequence[Reply], part: slice) -> dict[str, Any]:
    rows = samples.rows
    count = len(range(rows.count)[part])
    return {
        "info": samples.info,
        "seeds": None if rows.seeds is None else rows.seeds[part],
        "inputs": {
            name: values[part, 0] if values.shape[1:] == (1,) else values[part]
            for name, values in rows.inputs.items()
        },
        "format": rows.image_format,
        "tensors": {
            name: _output(samples, replies, name, kind, count)
            for item in samples.info.spec.outputs
            for name, kind in item.tensors(rows.image_format).items()
        },
    }


def _drawn_samples(
    samples: CheckedSamples, now: ModelInfo, replies: Sequence[Reply]
) -> CheckedSamples:
    """Return ``samples`` as of the model that gave ``replies``."""
    before = samples.info
    if all(reply.version == now.version != before.version for reply in replies):
        return CheckedSamples(now, samples.rows)
    if now.identity != before.identity:
        raise ServerFault(f"{before.name} was replaced while it was drawing; ask again")
    return samples


def _output(
    samples: CheckedSamples, replies: Sequence[Reply], name: str, kind: TensorType, count: int
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
    is_file = kind.dtype is np.object_
    fits = len(whole) == count and (is_file or kind.fits(whole.shape[1:]))
    if not fits or whole.dtype != kind.dtype:
        raise ServerFault(
            f"{samples.info.name} answered {name} as {whole.dtype} {list(whole.shape)}; {count} "
            f"of {np.dtype(kind.dtype)} {shown_shape(kind.row_shape)} were expected"
        )
    return whole.reshape(-1) if is_file else whole  # [N, 1] from a batched model, [N] streamed
