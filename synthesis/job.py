"""What a synthesis job asks for: its TOML file (docs/synthesis.md), checked key by key."""

import json
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from latentry.contract.errors import BadRequest
from latentry.contract.files import parse_toml, read_regular
from latentry.contract.kinds.kind import FREE, InputKind, sized
from latentry.contract.kinds.vector import VectorInput
from latentry.contract.seeds import MAX_SEED
from latentry.contract.spec import GeneratorSpec, ModelName
from latentry.contract.strict import Strict, explain
from latentry.synthesis.filters.classifier import ClassifierOptions
from latentry.synthesis.filters.filters import FILTERS, FilterOptions
from latentry.synthesis.filters.network import NetworkOptions
from latentry.synthesis.job_inputs import (
    Choice,
    JobInput,
    SaidInput,
    Uniform,
    check_input,
    check_numbers,
    numbers_of,
    rows_of_input,
    shown_in_file,
)
from latentry.synthesis.sinks.facts import Facts, is_said, picture_inputs, said_inputs
from latentry.synthesis.sinks.formats import FORMATS, FormatName
from latentry.synthesis.sinks.output_data import (
    ImageFormat,
    SampleOutput,
    check_outputs,
    sample_outputs,
)
from latentry.synthesis.sinks.sample import COLUMNS, FEATURES
from latentry.synthesis.sources.folders import Folder
from latentry.synthesis.sources.listing import PictureFolder
from latentry.synthesis.sources.webdataset import WebDataset

_MOST_FILE_BYTES = 2**20
_EITHER = 'give either seeds = "0-9999" or per_class = { "0-9" = 1000 }'

InputRows = dict[str, Any]
"""Every number, class and vector in effect, by name: an array [N], or [N, size] of a vector."""


class SamplesPart(Strict):
    """Which samples: a range of seeds, or an exact number for each class.

    Beside a folder of pictures both may be left out, as it tells how many samples there are.
    """

    seeds: str | None = None
    first_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    per_class: dict[str, Annotated[int, Field(ge=1, le=MAX_SEED)]] | None = None
    reserve: Annotated[FiniteFloat, Field(ge=0, le=100)] = 0.25

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        if self.seeds is not None and self.per_class:
            raise ValueError(_EITHER)
        if self.seeds is not None and self.first_seed:
            raise ValueError("first_seed goes with per_class; seeds has its own first seed")
        if self.seeds is not None:
            self._ends()
        return self

    @property
    def tells_count(self) -> bool:
        """Whether it says how many samples there are."""
        return self.seeds is not None or bool(self.per_class)

    @property
    def first(self) -> int:
        """The first seed."""
        return self.first_seed if self.seeds is None else self._ends()[0]

    def counts(self, spec: GeneratorSpec) -> list[tuple[int | None, int]]:
        """Return (class label, samples) by label; one pair without a label for a seed range.

        Raises:
            BadRequest: The model has no such class, or a class is counted twice.
        """
        if not self.per_class:
            first, last = self._ends()
            return [(None, last - first + 1)]
        item = spec.class_input
        if item is None:
            raise BadRequest("per_class counts classes, and this model has none; give seeds")
        counts: dict[int, int] = {}
        for classes, count in self.per_class.items():
            labels = [int(label) for label in numbers_of(item, classes)]
            check_numbers(item, labels)
            for label in labels:
                if label in counts:
                    raise BadRequest(f"per_class names class {label} twice")
                counts[label] = count
        return sorted(counts.items())

    def _ends(self) -> tuple[int, int]:
        """The first and the last seed of ``seeds``."""
        text = self.seeds or ""
        match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text.replace("_", ""))
        if not match:
            raise ValueError(f'seeds = "{text}"; one range with both ends, "0-9999"')
        first, last = int(match[1]), int(match[2])
        if last < first or last > MAX_SEED:
            raise ValueError(f'seeds = "{text}"; seeds run upwards from 0 to {MAX_SEED}')
        return first, last


def _default_image(part: dict[str, Any]) -> ImageFormat:
    chosen = FORMATS.get(part.get("format", "webdataset"))
    return "raw" if chosen and chosen.pixels_only else "png"


class OutputPart(Strict):
    """How samples are written, and which outputs of the model make one."""

    format: FormatName = "webdataset"
    image: ImageFormat = Field(default_factory=_default_image)
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
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
            raise ValueError(
                'image = "none" goes with features; to leave it out, name the other outputs'
            )
        return self

    def of_sample(self, spec: GeneratorSpec) -> tuple[SampleOutput, ...]:
        """Return the outputs that make a sample of a model, the main picture first."""
        return sample_outputs(spec, self.image, self.outputs)

    def has_sheet(self, spec: GeneratorSpec) -> bool:
        """Whether pictures are written, of which a contact sheet can be made."""
        main = self.of_sample(spec)[0]
        return main.is_main and main.is_written


class Job(Strict):
    """A job as its file says it."""

    model: ModelName
    model_digest: str | None = None
    build: Annotated[str, Field(pattern="^[a-z0-9_]+-[a-z0-9_]+$")] | None = None
    engine_class: Literal["any"] | None = None
    inputs: dict[str, JobInput] = {}
    samples: SamplesPart = Field(default=SamplesPart(), validate_default=True)
    output: OutputPart = OutputPart()
    filters: tuple[FilterOptions, ...] = ()

    @field_validator("model_digest")
    @classmethod
    def _is_a_digest(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{value!r} is no model digest, 64 hexadecimal digits")
        return value

    @field_validator("samples")
    @classmethod
    def _are_so_many(cls, value: SamplesPart, info: ValidationInfo) -> SamplesPart:
        inputs = info.data.get("inputs")  # None where something is wrong with them
        has_folder = any(isinstance(item, PictureFolder) for item in (inputs or {}).values())
        if inputs is not None and not (has_folder or value.tells_count):
            raise ValueError(f"{_EITHER}, or a folder of pictures in [inputs]")
        return value

    @property
    def folders(self) -> dict[str, PictureFolder]:
        """Where pictures lie, by the names of their inputs."""
        return {name: v for name, v in self.inputs.items() if isinstance(v, PictureFolder)}

    @property
    def said(self) -> dict[str, SaidInput]:
        """What is said of numbers, classes and vectors, by their names."""
        return {name: v for name, v in self.inputs.items() if not isinstance(v, PictureFolder)}

    def with_files(self, spec: GeneratorSpec, count: int) -> Self:
        """Return a job of folders with a seed for each of their ``count`` files.

        Raises:
            BadRequest: It gives another number of seeds, or a reserve that could replace nothing.
        """
        samples = self.samples
        first = samples.first
        if samples.seeds is not None and (given := samples.counts(spec)[0][1]) != count:
            raise BadRequest(
                f'[samples] seeds = "{samples.seeds}" are {given:,} and there are {count:,} files '
                f"of {', '.join(self.folders)}; leave seeds out, or give as many"
            )
        is_drawn = any(isinstance(value, Uniform | Choice) for value in self.inputs.values())
        reserve = samples.reserve
        if not (spec.takes_seed or is_drawn):
            if reserve and "reserve" in samples.model_fields_set:
                raise BadRequest(
                    f"{self.model} draws nothing from seeds: what is rejected comes out the same "
                    "with any other; take [samples] reserve out"
                )
            reserve = 0.0
        if (last := first + count - 1) > MAX_SEED:
            raise BadRequest(f"{count:,} files have seeds to {last}, past {MAX_SEED}; start lower")
        seeds = f"{first}-{last}"
        return self.model_copy(update={"samples": SamplesPart(seeds=seeds, reserve=reserve)})

    def check(self, spec: GeneratorSpec) -> None:
        """Check the job against what the model takes and gives.

        Raises:
            BadRequest: Naming what is in the way, what the job holds and what is allowed.
        """
        self._check_folders(spec)
        self._check_kind_of_model(spec)
        by_class = spec.class_input if self.samples.per_class else None
        if self.samples.tells_count:
            self.samples.counts(spec)
        if by_class and by_class.name in self.inputs:
            raise BadRequest(
                f"{by_class.name} is given by per_class already; take it out of [inputs]"
            )
        for name, value in self.said.items():
            check_input(self._input(spec, name), value)
        if not spec.class_input and any(isinstance(f, ClassifierOptions) for f in self.filters):
            raise BadRequest(
                f"the filter classifier compares classes, and {self.model} has none; a filter of "
                'kind = "python" can judge by other things'
            )
        self._check_required(spec, {*self.inputs, *([by_class.name] if by_class else [])})

    def _check_kind_of_model(self, spec: GeneratorSpec) -> None:
        """Refuse a model of which no job can be made, whatever its file says."""
        for item in spec.route(frozenset()).inputs:
            is_drawn = bool(item.distribution_to_draw) or item.default_row() is not None
            if not is_drawn and not is_said(item) and item.name not in self.folders:
                raise BadRequest(
                    f"{self.model} needs {item.name} ({item.allowed}); a job gives a model "
                    "numbers, classes, vectors and pictures only"
                )
        check_outputs(spec, self.output.outputs, self.output.image, self.model)
        self._check_what_looks(self.output.of_sample(spec))
        if not spec.takes_seed and not self.folders:
            raise BadRequest(f"{self.model} draws nothing from seeds, and a job is made of seeds")
        self._check_names(spec)

    def _check_what_looks(self, outputs: Sequence[SampleOutput]) -> None:
        """Refuse filters and features that look at pictures where there is none to be looked at."""
        looking = [f"the filter {judge.kind}" for judge in self.filters if judge.needs_picture]
        looking += ["[output] features"] if self.output.features else []
        if looking and not outputs[0].is_main:
            made = ", ".join(output.name for output in outputs)
            raise BadRequest(f"{looking[0]} looks at pictures, and samples of this job are {made}")
        if looking and FREE in outputs[0].shape:
            raise BadRequest(
                f"{looking[0]} looks at pictures of one size, and {self.model} gives "
                f"{sized(outputs[0].shape)}"
            )

    def _check_names(self, spec: GeneratorSpec) -> None:
        """Refuse inputs and outputs called as something else that a shard says of a sample."""
        taken = COLUMNS | Facts(spec).texts.keys()
        inputs = {item.name for item in said_inputs(spec)}
        others = [output for output in self.output.of_sample(spec) if not output.is_main]
        outputs = {output.name for output in others}
        if not self.output.features:
            outputs.discard(FEATURES)  # the column is free, then
        for what, names in (("takes an input", inputs), ("gives an output", outputs)):
            for name in sorted(names & taken):
                raise BadRequest(
                    f"{self.model} {what} called {name}, which is what shards call something else "
                    "of a sample; export it with another name for that"
                )
            taken |= names

    def _check_folders(self, spec: GeneratorSpec) -> None:
        """Check that pictures, and only those, come out of folders."""
        pictures = {item.name: item for item in picture_inputs(spec)}
        for name in self.folders:
            if name not in pictures:
                item = spec.find(name)
                takes = f"it takes {item.allowed}" if item else f"it takes {spec.takes}"
                raise BadRequest(f"{self.model} takes no pictures as {name}; {takes}")
        for name, picture in pictures.items():
            if name not in self.folders:
                raise BadRequest(
                    f"{self.model} needs {name} ({picture.allowed}); a job gives a model pictures "
                    f'out of folders: [inputs] {name} = {{ folder = "pictures" }}'
                )
        if self.folders and self.samples.per_class:
            raise BadRequest(
                f"per_class counts samples, and so does the folder of {min(self.folders)}; give "
                "classes in [inputs] instead, one for all or by choice"
            )

    def _input(self, spec: GeneratorSpec, name: str) -> InputKind:
        """Return a number, class or vector; raises BadRequest where there is none of this name."""
        item = spec.find(name)
        if item and not is_said(item):
            raise BadRequest(
                f"{name} is no number, class or vector ({item.allowed}), and a job gives a model "
                "no other values; take it out of [inputs]"
            )
        if item is None:
            there = ", ".join(item.name for item in said_inputs(spec))
            raise BadRequest(
                f"{self.model} takes no {name} in a job; it takes "
                f"{there or 'no numbers, classes or vectors'}"
            )
        return item

    def _check_required(self, spec: GeneratorSpec, given: Set[str]) -> None:
        """Refuse a job that leaves out what the model needs."""
        for item in said_inputs(spec):
            if item.name in given or item.default_row() is not None:
                continue
            if item is spec.class_input:
                raise BadRequest(
                    f"{self.model} needs {item.name}: say how many of each class with [samples] "
                    f'per_class = {{ "0-9" = 1000 }}, or give [inputs] {item.name} = 7 or '
                    f'{item.name} = {{ choice = "0-9" }}'
                )
            raise BadRequest(f"{self.model} needs [inputs] {item.name}; it takes {item.allowed}")

    def inputs_of(
        self, spec: GeneratorSpec, seeds: NDArray[np.int64], labels: NDArray[np.int64] | None
    ) -> InputRows:
        """Return every number, class and vector for samples with these seeds and, maybe, labels."""
        inputs: InputRows = {}
        for item in said_inputs(spec):
            if labels is not None and item is spec.class_input:
                inputs[item.name] = labels
            elif item.name in self.said:
                inputs[item.name] = rows_of_input(item, self.said[item.name], seeds)
            elif (row := item.default_row()) is not None:
                rows = np.tile(row, (len(seeds), 1))
                inputs[item.name] = rows if isinstance(item, VectorInput) else rows[:, 0]
        return inputs


def class_name(spec: GeneratorSpec) -> str:
    """Return the name of the input that per_class counts; empty where there is none."""
    return spec.class_input.name if spec.class_input else ""


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


# What may stand in a table, by its key or by the word that tells its kind.
_TABLES: dict[str, type[Strict]] = {
    "samples": SamplesPart,
    "output": OutputPart,
    "features": NetworkOptions,
    "uniform": Uniform,
    "choice": Choice,
    "folder": Folder,
    "webdataset": WebDataset,
    **FILTERS,
}
_WORDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list (filters: [[filters]])",
    "too_short": "a list with something in it",
    "string_type": "a text, in quotes",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
}


def _finding(item: ErrorDetails) -> str:
    """Return one of pydantic's findings for people: the key, what it holds, what is allowed."""
    kind, path = item["type"], list(item["loc"])
    fields = _TABLES.get(str(path[-2]) if len(path) > 1 else "", Job).model_fields
    message = item["msg"].removeprefix("Value error, ")
    if path[-1:] == ["[key]"]:
        must = message.replace("Input should", "it must")
        return f"{_dotted(path[:-1])}: there is no such key; {must}"
    if path[:1] in (["filters"], ["inputs"]):
        del path[2:3]  # its kind, which is part of pydantic's path and not of the file's
    where = _dotted(path)
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where}: there is no such key; there are {', '.join(fields)}"
    if kind.startswith("union_tag"):
        kinds = ", ".join(FILTERS)
        return f"{where} holds {shown_in_file(item['input'])}; its kind must be one of {kinds}"
    if kind == "value_error":
        return f"{where}: {message}"
    must = f"must be {_WORDS[kind]}" if kind in _WORDS else message
    must = must.replace("Input should", "must")
    return f"{where} is {shown_in_file(item['input'])}; it {must}"


def _dotted(path: Sequence[object]) -> str:
    return ".".join(map(str, path))
