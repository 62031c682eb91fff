"""What the commands that draw samples share: their options, and what is told of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from latentry.cli.common.usage import WrongUsage, reading_options
from latentry.contract.errors import BadRequest
from latentry.contract.kinds.classes import ClassInput
from latentry.contract.kinds.formats import FILE_FORMATS
from latentry.contract.kinds.kind import InputKind
from latentry.contract.kinds.numbers import IntegerInput, NumberInput
from latentry.contract.kinds.picture import PictureInput
from latentry.contract.spec import GeneratorSpec
from latentry.contract.transport import ModelInfo
from latentry.contract.values.ranges import MAX_SAMPLES, seeds_from_text

_FORMATS = ", ".join(FILE_FORMATS)
_EITHER = "give either --seeds, such as --seeds 0-63,100, or --n"

Model = Annotated[str, typer.Argument(help="Name of the model.")]
SeedsOption = Annotated[str | None, typer.Option(help="Seeds and ranges of seeds: 0-63,100.")]
CountOption = Annotated[
    int | None, typer.Option("--n", min=1, help="So many samples, seeds at random.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any input of the model; several values are gone through in turn: noise=0.1,0.5. "
        "Pictures and latents are files: image=photo.png, z=z.npy.",
    ),
]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", help="Classes: 7, 0-9 or cat,dog, which are gone through in turn."),
]
PsiOption = Annotated[str | None, typer.Option("--psi", help="truncation_psi; 1 is off.")]
ImageOption = Annotated[
    list[Path] | None, typer.Option("--image", help="Picture that goes in; may be repeated.")
]
ResizeOption = Annotated[
    bool, typer.Option("--resize", help="Scale pictures that go in to a size that the model takes.")
]
FormatOption = Annotated[str, typer.Option(help=f"Format of the files: {_FORMATS}.")]
RetryOption = Annotated[
    float | None, typer.Option(min=0, help="Wait so many seconds for a busy or lost server.")
]


@dataclass(frozen=True)
class SampleOptions:
    """What was typed about the samples, not yet compared with what the model takes.

    Attributes:
        seeds: Of ``--seeds``.
        n: Of ``--n``.
        settings: Of ``--set``, each NAME=VALUE.
        classes: Of ``--class``.
        psi: Of ``--psi``.
        images: Of ``--image``.
        resize: Of ``--resize``.

    Raises:
        WrongUsage: The options contradict each other, whatever the model.
    """

    seeds: str | None = None
    n: int | None = None
    settings: Sequence[str] = ()
    classes: str | None = None
    psi: str | None = None
    images: Sequence[Path] = field(default_factory=tuple)
    resize: bool = False

    def arguments(self, spec: GeneratorSpec, *, default_seeds: str | None = None) -> dict[str, Any]:
        """Return the arguments of ``Client.generate`` that the options mean for a model.

        Args:
            spec: What the model takes.
            default_seeds: Seeds where none are given and some are needed.

        Raises:
            WrongUsage: An option means nothing, or contradicts another.
            BadRequest: The model takes no such input.
        """
        values = self._values(spec)
        arguments: dict[str, Any] = {"resize": True} if self.resize else {}
        if self.n is not None:
            arguments["n"] = self.n
        elif self._seeds is not None:
            arguments["seeds"] = self._seeds
        elif spec.route(frozenset(values)).drawn:
            if default_seeds is None:
                raise WrongUsage(_EITHER)
            arguments["seeds"] = seeds_from_text("--seeds", default_seeds)
        _check_complete(spec, frozenset(values))
        count = count_samples(spec, {**arguments, **values})
        for name, value in values.items():
            arguments[name] = _in_turn(value, count) if isinstance(value, list) else value
        return arguments

    def __post_init__(self) -> None:
        """Check what the options alone say; raises WrongUsage."""
        if self._seeds is not None and self.n is not None:
            raise WrongUsage(_EITHER)
        self._texts  # noqa: B018

    @cached_property
    def _seeds(self) -> NDArray[np.int64] | None:
        if self.seeds is None:
            return None
        with reading_options():
            return seeds_from_text("--seeds", self.seeds)

    @cached_property
    def _texts(self) -> dict[str, str]:
        """What was set, by name."""
        texts: dict[str, str] = {}
        for setting in self.settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise WrongUsage(f"--set {setting} has no value; give --set NAME=VALUE")
            if name in texts:
                raise WrongUsage(f"--set {name} is given twice; give several values with commas")
            texts[name] = text
        return texts

    def _values(self, spec: GeneratorSpec) -> dict[str, Any]:
        """Return the value of every input that was given, by name; a list of several in turn."""
        given: dict[str, tuple[str, Any]] = {}
        for name, text in self._texts.items():
            given[name] = (f"--set {name}", _value(spec, f"--set {name}", name, text))
        short = {
            "--class": (spec.class_input, "class_label", self.classes),
            "--psi": (None, "truncation_psi", self.psi),
        }
        for option, (item, otherwise, typed) in short.items():
            name = item.name if item else otherwise
            if typed is not None:
                _check_once(given, name, option)
                given[name] = (option, _value(spec, option, name, typed))
        values = {name: value for name, (_, value) in given.items()}
        if self.images:
            picture = _first_picture(spec)
            if picture is None:
                raise BadRequest(f"--image: this model takes no picture; it takes {spec.takes}")
            _check_once(given, picture.name, "--image")
            values[picture.name] = _one_or_several(list(self.images))
        return values


def _check_complete(spec: GeneratorSpec, given: frozenset[str]) -> None:
    """Name the option of an input that has to be given and is not."""
    route = spec.route(given)
    for item in route.inputs:
        if item.name not in given and item not in route.drawn and item.default_row() is None:
            raise BadRequest(
                f"{_option_for(spec, item)}: {item.name} is required by this model; "
                f"it takes {item.allowed}"
            )


def _option_for(spec: GeneratorSpec, item: InputKind) -> str:
    if item is spec.class_input:
        return "--class"
    return "--image" if item is _first_picture(spec) else f"--set {item.name}=..."


def _first_picture(spec: GeneratorSpec) -> PictureInput | None:
    return next((item for item in spec.inputs if isinstance(item, PictureInput)), None)


def _check_once(given: Mapping[str, tuple[str, Any]], name: str, option: str) -> None:
    if name in given:
        raise WrongUsage(f"{given[name][0]} and {option} are the same; give one of them")


def _value(spec: GeneratorSpec, option: str, name: str, text: str) -> Any:
    item = spec.find(name)
    if item is None:
        raise BadRequest(f"{option}: this model takes no {name}; it takes {spec.takes}")
    try:
        return _one_or_several(item.value_from_text(text))
    except BadRequest as error:
        raise WrongUsage(f"{option}: {error}") from None


def _one_or_several(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _in_turn(values: list[Any], count: int) -> Any:
    """Return one value for each sample; too many samples are refused later."""
    count = min(count, MAX_SAMPLES)
    if isinstance(values[0], Path):
        return list(islice(cycle(values), count))
    return np.resize(np.array(values), count)


def count_samples(spec: GeneratorSpec, arguments: Mapping[str, Any]) -> int:
    """Return how many samples ``arguments`` of ``Client.generate`` ask for."""
    if "n" in arguments:
        return int(arguments["n"])
    if "seeds" in arguments:
        return len(arguments["seeds"])
    items = [(item, arguments[item.name]) for item in spec.inputs if item.name in arguments]
    return max((_count_rows(item, value) for item, value in items), default=1)


def _count_rows(item: InputKind, value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    dimensions = getattr(value, "ndim", 0)
    is_scalar = isinstance(item, ClassInput | NumberInput | IntegerInput)
    return len(value) if dimensions > (0 if is_scalar else len(item.row_shape)) else 1


def file_format_from_text(text: str) -> str:
    """Return ``text`` if it names a format of files; raises WrongUsage."""
    if text not in FILE_FORMATS:
        raise WrongUsage(f"--format {text} is no file format; use one of {_FORMATS}")
    return text


def json_from_info(info: ModelInfo) -> dict[str, str]:
    """Return what ``--json`` says of a served model."""
    return {
        "model": info.name,
        "version": info.version,
        "model_digest": info.model_digest,
        "build": info.build,
        "build_digest": info.build_digest,
        "engine_class": info.engine_class,
    }
