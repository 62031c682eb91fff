"""What a synthesis job asks for: its TOML file (docs/synthesis.md), checked key by key."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from latentry.clients.ranges import parse_classes
from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.files import parse_toml, read_regular
from latentry.contract.seeds import MAX_SEED, draw_uniform
from latentry.contract.spec import GeneratorSpec, ModelName, Role
from latentry.contract.strict import Strict, explain
from latentry.synthesis.filters.classifier import ClassifierOptions
from latentry.synthesis.filters.filters import FILTERS, FilterOptions
from latentry.synthesis.filters.network import NetworkOptions
from latentry.synthesis.sinks.formats import FORMATS, FormatName
from latentry.synthesis.sinks.image_data import ImageFormat

_MOST_FILE_BYTES = 2**20

# Which of a sample's streams a control is drawn from; z has the seed's own.
CONTROL_STREAMS = {Role.CLASS_LABEL: 1, Role.TRUNCATION_PSI: 2}

Controls = dict[str, NDArray[Any]]
"""Every control in effect, by role: one value a sample, [N]."""


def _check_number(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared, as an integer that is beyond all floats cannot be asked whether it is finite.
    if not is_number or not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
        raise ValueError(
            f'holds {_shown(value)}; give a number, {{ choice = [0, 1] }}, {{ choice = "0-9" }} or '
            "{ uniform = [0.5, 1] }"
        )
    return value


Number = Annotated[int | float, BeforeValidator(_check_number)]


class Uniform(Strict):
    """A control drawn for each sample from its seed, evenly between two numbers."""

    uniform: tuple[FiniteFloat, FiniteFloat]

    @model_validator(mode="after")
    def _runs_upwards(self) -> Self:
        if self.uniform[0] > self.uniform[1]:
            raise ValueError(f"uniform = {list(self.uniform)} runs backwards; [low, high]")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that have to be allowed."""
        return self.uniform

    def draw(self, drawn: NDArray[np.float64]) -> NDArray[Any]:
        """Return the control's values for numbers in [0, 1)."""
        low, high = self.uniform
        return low + (high - low) * drawn


class Choice(Strict):
    """A control drawn for each sample from its seed, each of several values as likely."""

    choice: tuple[Number, ...]

    @field_validator("choice", mode="before")
    @classmethod
    def _read_ranges(cls, value: object) -> object:
        if value == []:
            raise ValueError("holds []; give at least one value")
        if isinstance(value, str):
            return tuple(_classes("choice", value))
        return tuple(value) if isinstance(value, list) else value

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that have to be allowed."""
        return self.choice

    def draw(self, drawn: NDArray[np.float64]) -> NDArray[Any]:
        """Return the control's values for numbers in [0, 1)."""
        return np.array(self.choice)[(drawn * len(self.choice)).astype(np.int64)]


def _kind_of_control(value: object) -> str:
    if isinstance(value, Uniform | Choice):
        return type(value).__name__.lower()
    if isinstance(value, dict):
        return "uniform" if "uniform" in value else "choice"
    return "fixed"


Control = Annotated[
    Annotated[Number, Tag("fixed")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Choice, Tag("choice")],
    Discriminator(_kind_of_control),
]


class SamplesPart(Strict):
    """Which samples: a range of seeds, or an exact number for each class."""

    seeds: str | None = None
    first_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    per_class: dict[str, Annotated[int, Field(ge=1, le=MAX_SEED)]] | None = None
    reserve: Annotated[FiniteFloat, Field(ge=0, le=100)] = 0.25

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if (self.seeds is None) == (not self.per_class):
            raise ValueError('give either seeds = "0-9999" or per_class = { "0-9" = 1000 }')
        if self.seeds is not None and self.first_seed:
            raise ValueError("first_seed goes with per_class; seeds has its own first seed")
        self.seed_range()
        self.counts()
        return self

    def seed_range(self) -> tuple[int, int]:
        """The first seed, and the number of samples."""
        if self.seeds is None:
            return self.first_seed, sum(count for _, count in self.counts())
        match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", self.seeds.replace("_", ""))
        if not match:
            raise ValueError(f'seeds = "{self.seeds}"; one range with both ends, "0-9999"')
        first, last = int(match[1]), int(match[2])
        if last < first or last > MAX_SEED:
            raise ValueError(f'seeds = "{self.seeds}"; seeds run upwards from 0 to {MAX_SEED}')
        return first, last - first + 1

    def counts(self) -> list[tuple[int | None, int]]:
        """Return (class label, samples) by label; one pair without a label for a seed range."""
        if not self.per_class:
            return [(None, self.seed_range()[1])]
        counts: dict[int, int] = {}
        for classes, count in self.per_class.items():
            for label in _classes("per_class", classes):
                if label in counts:
                    raise ValueError(f"per_class names class {label} twice")
                counts[label] = count
        return sorted(counts.items())


def _default_image(part: dict[str, Any]) -> ImageFormat:
    chosen = FORMATS.get(part.get("format", "webdataset"))
    return "raw" if chosen and chosen.pixels_only else "png"


class OutputPart(Strict):
    """How samples are written."""

    format: FormatName = "webdataset"
    image: ImageFormat = Field(default_factory=_default_image)
    shard_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    features: NetworkOptions | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if FORMATS[self.format].pixels_only and self.image != "raw":
            raise ValueError(f'{self.format} holds one array of pixels: image = "raw"')
        if self.features and not FORMATS[self.format].takes_features:
            fitting = next(name for name, item in FORMATS.items() if item.takes_features)
            raise ValueError(f'feature vectors are written with format = "{fitting}"')
        if self.image == "none" and not self.features:
            raise ValueError('image = "none" goes with features; there would be nothing to write')
        return self


class Job(Strict):
    """A job as its file says it."""

    model: ModelName
    model_digest: str | None = None
    engine_class: Literal["any"] | None = None
    samples: SamplesPart
    controls: dict[Literal["class_label", "truncation_psi"], Control] = {}
    output: OutputPart = OutputPart()
    filters: tuple[FilterOptions, ...] = ()

    @field_validator("model_digest")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{value!r} is no model digest, 64 hexadecimal digits")
        return value

    def check(self, spec: GeneratorSpec) -> None:
        """Check the job against what the model takes.

        Raises:
            BadRequest: Naming the control, what it holds and what is allowed.
        """
        labels = [label for label, _ in self.samples.counts() if label is not None]
        if labels and Role.CLASS_LABEL in self.controls:
            raise BadRequest("class_label is given by per_class already; take it out of [controls]")
        if labels:
            self._check_control(spec, Role.CLASS_LABEL, labels)
        for role, control in self.controls.items():
            values = control.ends if isinstance(control, Uniform | Choice) else (control,)
            self._check_control(spec, role, values)
        if not spec.classes and any(isinstance(f, ClassifierOptions) for f in self.filters):
            raise BadRequest(
                f"the filter classifier compares classes, and {self.model} has none; a filter of "
                'kind = "python" can judge by other things'
            )
        if spec.classes and not labels and Role.CLASS_LABEL not in self.controls:
            raise BadRequest(
                f"{self.model} needs class_label: say how many of each class with [samples] "
                'per_class = { "0-9" = 1000 }, or give [controls] class_label = 7 or '
                'class_label = { choice = "0-9" }'
            )

    def _check_control(self, spec: GeneratorSpec, role: str, values: Sequence[float]) -> None:
        item = spec.find(role)
        if item is None:
            there = ", ".join(control.role for control in spec.controls) or "no controls at all"
            raise BadRequest(f"{self.model} takes no {role}; it takes {there}")
        for value in values:
            try:
                fits = item.dtype is not np.int64 or isinstance(value, int)
                with np.errstate(over="ignore"):  # becomes infinity, which the check refuses
                    item.check(np.array([[value]]).astype(item.dtype))
            except (BadRequest, OverflowError, TypeError):
                fits = False
            if not fits:
                raise BadRequest(f"{role} is {value} in the job; it takes {item.allowed}")

    def controls_of(
        self, spec: GeneratorSpec, seeds: NDArray[np.int64], labels: NDArray[np.int64] | None
    ) -> Controls:
        """Return every control of the model for samples with these seeds and, maybe, labels."""
        controls: Controls = {}
        for item in spec.controls:
            role = item.role
            value = self.controls.get(role.value, getattr(item, "default", None))  # type: ignore[call-overload]
            if role is Role.CLASS_LABEL and labels is not None:
                controls[role.value] = labels
            elif isinstance(value, Uniform | Choice):
                drawn = value.draw(draw_uniform(seeds, CONTROL_STREAMS[role]))
                controls[role.value] = drawn.astype(item.dtype)
            else:
                controls[role.value] = np.full(len(seeds), value, item.dtype)
        return controls


def job_from_file(path: Path) -> Job:
    """Return the job in a TOML file; files that it names are looked for beside it.

    Raises:
        BadRequest: The file is missing, no TOML, or asks for something that there is not.
    """
    try:
        data = parse_toml(read_regular(path, most=_MOST_FILE_BYTES))
        # As JSON: its lists are tuples, its texts paths, and nothing is taken for anything else.
        text = json.dumps(data, default=str)
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadRequest(f"{path} is no TOML: {error}") from error
    try:
        return Job.model_validate_json(text, strict=True, context={"folder": path.resolve().parent})
    except ValidationError as error:
        raise BadRequest(f"{path}: {explain(error, _finding)}") from error


def _classes(key: str, text: str) -> list[int]:
    """Return the class labels in ``text``, with our errors as pydantic wants them."""
    try:
        labels: list[int] = parse_classes(text, called=key).tolist()
    except LatentryError as error:
        raise ValueError(str(error)) from error
    return labels


# What may stand in a table, by its key or by the word that tells its kind.
_TABLES: dict[str, type[Strict]] = {
    "samples": SamplesPart,
    "output": OutputPart,
    "features": NetworkOptions,
    "uniform": Uniform,
    "choice": Choice,
    **FILTERS,
}
_WORDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list ([[filters]] for filters)",
    "string_type": "a text, in quotes",
    "int_type": "an integer",
    "float_type": "a number",
}


def _finding(item: ErrorDetails) -> str:
    """Return one of pydantic's findings for people: the key, what it holds, what is allowed."""
    kind, path = item["type"], list(item["loc"])
    fields = _TABLES.get(str(path[-2]) if len(path) > 1 else "", Job).model_fields
    message = item["msg"].removeprefix("Value error, ")
    if path[-1:] == ["[key]"]:
        must = message.replace("Input should", "it must")
        return f"{_dotted(path[:-1])}: there is no such key; {must}"
    if path[:1] in (["filters"], ["controls"]):
        del path[2:3]  # its kind, which is part of pydantic's path and not of the file's
    where = _dotted(path)
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where}: there is no such key; there are {', '.join(fields)}"
    if kind.startswith("union_tag"):
        return (
            f"{where} holds {_shown(item['input'])}; its kind must be one of {', '.join(FILTERS)}"
        )
    if kind == "value_error":
        return f"{where}: {message}"
    must = f"must be {_WORDS[kind]}" if kind in _WORDS else message
    must = must.replace("Input should", "must")
    return f"{where} is {_shown(item['input'])}; it {must}"


def _dotted(path: Sequence[object]) -> str:
    return ".".join(map(str, path))


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
