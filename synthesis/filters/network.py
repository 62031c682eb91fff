"""ONNX networks that take images: classifiers and feature extractors.

They run on one thread in batches that do not depend on the machine, so that a shard comes out the
same everywhere.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, FiniteFloat, ValidationInfo, field_serializer, field_validator

from latentry.contract.errors import BadRequest
from latentry.contract.files import read_regular
from latentry.contract.images import Uint8
from latentry.synthesis.filters.judging import JudgeOptions

if TYPE_CHECKING:
    from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

_NETWORK_BATCH = 32
_MOST_NETWORK_BYTES = 2**31  # what ONNX itself allows in one file
# A tensor's external_data in an ONNX file: the key "location", a length of one byte, a file's name.
_EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12[\x01-\x7f]([\w./ -]+)")


class NetworkOptions(JudgeOptions):
    """An ONNX network that takes images; the defaults are those of a generator's own output.

    Attributes:
        file: The ONNX file.
        scale: What the numbers of an image become: [-1, 1], [0, 1] or [0, 255].
        mean: Subtracted from each channel after scaling; one number or one for each channel.
        std: Divided by, after that.
        output: Name of the output to read; the first one if left out.
    """

    file: Path
    scale: Literal["minus_one_to_one", "zero_to_one", "zero_to_255"] = "minus_one_to_one"
    mean: tuple[FiniteFloat, ...] = (0.0,)
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = (1.0,)
    output: str | None = None

    @field_validator("mean", "std")
    @classmethod
    def _fits_channels(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError(f"has {len(value)} numbers; give one, or one for each of 3 channels")
        return value

    @field_validator("file")
    @classmethod
    def _is_there(cls, value: Path, info: ValidationInfo) -> Path:
        context = info.context or {}
        path = Path(context.get("folder", "")) / value
        if not context.get("recorded") and not path.is_file():
            raise ValueError(f"{path} is no file; give the path of an ONNX file")
        return path

    @field_serializer("file")
    def _name_of_file(self, value: Path) -> str:
        return value.name  # where it lies is this machine's affair; its SHA-256 goes with the job

    def files(self) -> list[Path]:
        """Return the files on which the verdict depends."""
        return [self.file]


class ImageNetwork:
    """An ONNX network on images, the same to the bit for the same images."""

    def __init__(self, options: NetworkOptions, engine: "OnnxRuntimeEngine") -> None:
        self._options = options
        self._engine = engine
        inputs = engine.inputs
        if len(inputs) != 1 or len(next(iter(inputs.values()))) != 4:
            raise BadRequest(
                f"{options.file} takes {inputs}; it must take one batch of images, "
                "[N, C, H, W] or [N, H, W, C]"
            )
        ((self._input, shape),) = inputs.items()
        if isinstance(shape[0], int) and shape[0] != _NETWORK_BATCH:
            raise BadRequest(f"{options.file} takes batches of {shape[0]} only; it must be free")
        self._channels_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
        sides = shape[1:3] if self._channels_last else shape[2:4]
        channels = shape[3] if self._channels_last else shape[1]
        self._channels = channels if channels in (1, 3) else None
        self._size = sides if all(isinstance(side, int) for side in sides) else None
        names = engine.outputs
        self._output = options.output or names[0]
        if self._output not in names:
            raise BadRequest(f"{options.file} has no output {self._output}; it has {names}")

    def run(self, images: Uint8) -> NDArray[Any]:
        """Return the output for uint8 [N, H, W, C], [N, ...]."""
        starts = range(0, len(images), _NETWORK_BATCH)
        return np.concatenate([self._run_one(images[at : at + _NETWORK_BATCH]) for at in starts])

    def _run_one(self, images: Uint8) -> NDArray[Any]:
        inputs = self._prepared(images)
        # Always a whole batch: some operators round differently by its size.
        padded = np.resize(inputs, (_NETWORK_BATCH, *inputs.shape[1:]))
        try:
            output = self._engine.run({self._input: padded}, [self._output])[self._output]
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            text = " ".join(str(error).split())
            raise BadRequest(
                f"{self._options.file} takes no {padded.dtype} {list(padded.shape)}: {text}"
            ) from error
        if len(output) != _NETWORK_BATCH:
            raise BadRequest(
                f"{self._options.file} gave {output.shape} for {_NETWORK_BATCH} images; "
                "its batch must be free"
            )
        return output[: len(inputs)]

    def _prepared(self, images: Uint8) -> NDArray[np.float32]:
        """Return uint8 [N, H, W, C] as the network's input, float32."""
        images = self._fitted(images)
        values = images.astype(np.float32)
        if self._options.scale == "minus_one_to_one":
            values = values / np.float32(127.5) - np.float32(1)
        elif self._options.scale == "zero_to_one":
            values = values / np.float32(255)
        mean, std = (
            np.array(numbers, np.float32) for numbers in (self._options.mean, self._options.std)
        )
        if max(len(mean), len(std)) not in (1, values.shape[3]):
            raise BadRequest(
                f"{self._options.file} takes {values.shape[3]} channels; mean and std give "
                f"{len(mean)} and {len(std)} numbers"
            )
        values = (values - mean) / std
        if not self._channels_last:
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values)

    def _fitted(self, images: Uint8) -> Uint8:
        """Return images in the network's own size and colours, uint8 [N, H, W, C]."""
        if self._channels == 3 and images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        elif self._channels == 1 and images.shape[3] == 3:
            grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
            images = np.stack(grey)[..., None]
        if self._size and images.shape[1:3] != tuple(self._size):
            images = np.stack([_resized(image, self._size) for image in images])
        return images


def load_network(options: NetworkOptions) -> ImageNetwork:
    """Return the network in ``options.file``.

    Raises:
        BadRequest: ONNX Runtime does not load it, or it takes no images.
    """
    from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

    try:
        data = read_regular(options.file, most=_MOST_NETWORK_BYTES)
    except OSError as error:
        raise BadRequest(f"{options.file} cannot be read: {error.strerror}") from error
    if outside := _EXTERNAL_DATA.search(data):
        raise BadRequest(
            f"{options.file} keeps its weights in another file, "
            f"{outside[1].decode(errors='replace')}; write one file that holds all, as "
            "torch.onnx.export(..., external_data=False) does"
        )
    try:
        engine = OnnxRuntimeEngine(data, threads=1)
    except Exception as error:  # ONNX Runtime's errors share no base of their own
        text = " ".join(str(error).split())[:500]
        raise BadRequest(f"ONNX Runtime cannot load {options.file}: {text}") from error
    return ImageNetwork(options, engine)


def network_versions() -> dict[str, str]:
    """Return the versions of what networks run on, and of what prepares their images."""
    from latentry.serving.runtime.engines.engine_class import engine_class

    return {"networks": engine_class(), "pillow": version("Pillow")}


def _resized(image: Uint8, size: Sequence[Any]) -> Uint8:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(size[0], size[1], image.shape[2])
