"""Filters of a job: what makes a sample be replaced by one of the shard's reserve.

NaN and infinity are always refused; the filters here are chosen in the job's file. Networks
(classifiers, feature extractors) run on one thread in batches that do not depend on the machine, so
that a shard comes out the same everywhere.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PrivateAttr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from latentry.contract.errors import BadRequest, NotFound
from latentry.contract.files import read_regular, sha256_regular
from latentry.contract.images import Uint8
from latentry.contract.spec import Role

if TYPE_CHECKING:
    from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

_NETWORK_BATCH = 32
_MOST_NETWORK_BYTES = 2**31  # what ONNX itself allows in one file
_MOST_REASON = 1000
# A tensor's external_data in an ONNX file: the key "location", a length of one byte, a file's name.
_EXTERNAL_DATA = re.compile(rb"\x0a\x08location\x12[\x01-\x7f]([\w./ -]+)")


@dataclass(frozen=True)
class Batch:
    """Samples that are judged together, in the order of the shard.

    Attributes:
        images: uint8 [N, H, W, C].
        seeds: int64 [N].
        controls: Every control in effect, by role, [N].
        sha256: Hexadecimal SHA-256 of each image's pixels.
        seen: Those of all images of the shard that were judged before; for filters to add to.
    """

    images: Uint8
    seeds: NDArray[np.int64]
    controls: Mapping[str, NDArray[Any]]
    sha256: Sequence[str]
    seen: set[str]


class Filter(Protocol):
    """Judges samples; what it knows of a shard is in the batches."""

    def judge(self, batch: Batch) -> Sequence[str | None]:
        """Return for each sample None, or the reason why it is rejected."""
        ...


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def files(self) -> list[Path]:
        """Return the files on which the verdict depends."""
        return []


class ConstantOptions(_Options):
    """Reject images whose brightest and darkest values are within ``tolerance`` in each channel."""

    kind: Literal["constant"]
    tolerance: Annotated[int, Field(ge=0, le=254)] = 0

    def load(self) -> "Filter":
        """Return the filter."""
        return _Constant(self)


class DuplicatesOptions(_Options):
    """Reject images that are in the shard already, pixel by pixel."""

    kind: Literal["duplicates"]

    def load(self) -> "Filter":
        """Return the filter."""
        return _Duplicates()


class NetworkOptions(_Options):
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


class ClassifierOptions(NetworkOptions):
    """Reject images that a classifier takes for another class than the one asked for.

    Attributes:
        min_probability: Also reject those to which it gives the class less than this.
        labels: Class labels of the classifier's outputs, where they are not 0, 1, 2, ...
    """

    kind: Literal["classifier"]
    min_probability: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    labels: tuple[int, ...] | None = None

    def load(self) -> "Filter":
        """Return the filter."""
        return _Classifier(self, load_network(self))


class PythonOptions(_Options):
    """Ask a function of yours, ``package.module:function``.

    It is called as ``function(images, seeds, controls)`` with uint8 [N, H, W, C], int64 [N] and a
    dictionary of [N], and returns N entries: None, or a text that says why the sample is rejected.
    The verdict on an image must depend on nothing else, or shards are no longer reproducible.
    """

    kind: Literal["python"]
    function: str
    _folder: str = PrivateAttr("")

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+", value):
            raise ValueError(f'holds "{value}"; give "package.module:function"')
        return value

    @model_validator(mode="after")
    def _keep_folder(self, info: ValidationInfo) -> Self:
        self._folder = str((info.context or {}).get("folder", ""))
        return self

    def load(self) -> "Filter":
        """Return the filter."""
        return _Python(self.function, _imported(self.function, self._folder))

    def files(self) -> list[Path]:
        """Return the files on which the verdict depends."""
        return [Path(inspect.getsourcefile(_imported(self.function, self._folder)) or "")]


FilterOptions = Annotated[
    ConstantOptions | DuplicatesOptions | ClassifierOptions | PythonOptions,
    Field(discriminator="kind"),
]
FILTERS: dict[str, type[_Options]] = {
    "constant": ConstantOptions,
    "duplicates": DuplicatesOptions,
    "classifier": ClassifierOptions,
    "python": PythonOptions,
}


def _imported(target: str, folder: str) -> Callable[..., Any]:
    """Return the function ``package.module:function``, looked for in ``folder`` first.

    The folder stays on ``sys.path``, because the module may import more of it later.
    """
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NotFound(
            f"filter {target} is not there ({error}); modules are looked for beside the job's file "
            "and among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise BadRequest(f"filter {target} cannot be imported: {_told(error)}") from error
    if not inspect.isfunction(function):
        raise BadRequest(f"filter {target} is no Python function")
    return function


class Network:
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
        parts = []
        for start in range(0, len(images), _NETWORK_BATCH):
            inputs = self._prepared(images[start : start + _NETWORK_BATCH])
            count = len(inputs)
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
            parts.append(output[:count])
        return np.concatenate(parts)

    def _prepared(self, images: Uint8) -> NDArray[np.float32]:
        if self._channels == 3 and images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        elif self._channels == 1 and images.shape[3] == 3:
            images = np.stack([np.asarray(Image.fromarray(i).convert("L")) for i in images])[
                ..., None
            ]
        if self._size and images.shape[1:3] != tuple(self._size):
            images = np.stack([_resized(image, self._size) for image in images])
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


def load_network(options: NetworkOptions) -> Network:
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
    return Network(options, engine)


def network_versions() -> dict[str, str]:
    """Return the versions of what networks run on, and of what prepares their images."""
    from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

    return {"networks": OnnxRuntimeEngine.expect(), "pillow": version("Pillow")}


def file_hashes(options: Sequence[_Options]) -> dict[str, str]:
    """Return the SHA-256 of every file on which a verdict depends, by name.

    Raises:
        BadRequest: Two of them have the same name.
        NotFound: The function of a filter is missing, or a file cannot be read.
    """
    paths = {path.absolute() for option in options for path in option.files()}
    try:
        hashes = {path.name: sha256_regular(path) for path in sorted(paths)}
    except OSError as error:
        raise NotFound(f"{error.filename} cannot be read: {error.strerror}") from error
    if len(hashes) < len(paths):
        listed = ", ".join(map(str, sorted(paths)))
        raise BadRequest(f"a job's files are told apart by their names, rename one: {listed}")
    return hashes


class _Constant:
    def __init__(self, options: ConstantOptions) -> None:
        self._tolerance = options.tolerance

    def judge(self, batch: Batch) -> list[str | None]:
        spread = batch.images.max((1, 2)).astype(np.int64) - batch.images.min((1, 2))
        return [
            "constant" if constant else None for constant in (spread <= self._tolerance).all(axis=1)
        ]


class _Duplicates:
    def judge(self, batch: Batch) -> list[str | None]:
        reasons: list[str | None] = []
        for sha256 in batch.sha256:
            reasons.append("duplicate" if sha256 in batch.seen else None)
            batch.seen.add(sha256)
        return reasons


class _Classifier:
    def __init__(self, options: ClassifierOptions, network: Network) -> None:
        self._options = options
        self._network = network

    def judge(self, batch: Batch) -> list[str | None]:
        output = self._network.run(batch.images)
        asked = batch.controls.get(Role.CLASS_LABEL)
        if asked is None:
            raise BadRequest("the filter classifier needs samples of a class; this model has none")
        if output.dtype.kind not in "iuf":
            raise BadRequest(f"{self._options.file} answers {output.dtype}; it must answer numbers")
        if output.dtype.kind in "iu" and output.size == len(output):
            if self._options.min_probability:
                raise BadRequest(
                    f"{self._options.file} answers labels alone; for min_probability name its "
                    "output of probabilities with output"
                )
            found, sure = output.reshape(-1), np.ones(len(output))
        else:
            probabilities = _probabilities(output.reshape(len(output), -1))
            if not np.isfinite(probabilities).all() or probabilities.shape[1] < 2:
                raise BadRequest(
                    f"{self._options.file} gave {output[:1].tolist()} for an image; a classifier "
                    "gives a finite number for each class"
                )
            places = probabilities.argmax(axis=1)
            labels = np.array(self._options.labels or range(probabilities.shape[1]))
            if len(labels) != probabilities.shape[1]:
                raise BadRequest(
                    f"{self._options.file} has {probabilities.shape[1]} outputs, the job names "
                    f"{len(labels)} labels"
                )
            found, sure = labels[places], probabilities.max(axis=1)
        reasons: list[str | None] = []
        for label, wanted, probability in zip(found.tolist(), asked.tolist(), sure, strict=True):
            if label != wanted:
                reasons.append(f"classified as {label}")
            elif probability < self._options.min_probability:
                reasons.append("classified with low probability")
            else:
                reasons.append(None)
        return reasons


class _Python:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function

    def judge(self, batch: Batch) -> list[str | None]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is the command's own
                answer = list(self._function(batch.images, batch.seeds, dict(batch.controls)))
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise BadRequest(f"filter {self._name} failed: {_told(error)}") from error
        must = "it returns one for each image, None or the reason as a text"
        if len(answer) != len(batch.seeds):
            raise BadRequest(
                f"filter {self._name} answered {len(answer)} items for {len(batch.seeds)} images; "
                f"{must}"
            )
        for item in answer:
            if item is not None and not isinstance(item, str):
                raise BadRequest(f"filter {self._name} answered a {type(item).__name__}; {must}")
        return [None if item is None else _as_reason(item) for item in answer]


def _as_reason(text: str) -> str:
    """Return a reason as a record takes it: not too long, and in UTF-8."""
    return text[:_MOST_REASON].encode(errors="replace").decode()


def _probabilities(output: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities [N, K] of probabilities or logits, each row for itself."""
    values = output.astype(np.float64)
    ready = (values >= 0).all(axis=1) & np.isclose(values.sum(axis=1), 1, atol=1e-3)
    with np.errstate(invalid="ignore"):  # NaN and infinity are told of by who asked
        powers = np.exp(values - values.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return np.where(ready[:, None], values, shares)


def _told(error: BaseException) -> str:
    """Return what was raised, and where, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def _resized(image: Uint8, size: Sequence[Any]) -> Uint8:
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(size[0], size[1], image.shape[2])
