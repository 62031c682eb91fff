"""What stands in the JSON files of an entry.

``model.json`` is what draws an image and nothing else. Its SHA-256, as ``sha256sum`` prints it, is
the **model digest**: of the stored text, so that no later version of these classes changes it.

``record.json`` is where the model came from. Each ``builds/<engine>-<precision>/build.json`` is one
way to run it: with which files, proved how, served how. The **build digest** names all of a build
on which a bit of an image may depend; tuning its ``serving`` part changes no image and no digest.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from latentry.contract.errors import EntryError
from latentry.contract.files import is_plain_name
from latentry.contract.seeds import SEED_CONTRACT
from latentry.contract.spec import GeneratorSpec
from latentry.contract.strict import Strict
from latentry.serving.entries.sealed import (
    FORMAT,
    FileRecord,
    Sha256,
    content_of,
    json_bytes,
    read_entry_file,
)

MODEL_JSON = "model.json"
RECORD_JSON = "record.json"
BUILD_JSON = "build.json"
BUILDS = "builds"
DEFAULT_BUILD = "default_build"
OLD_MANIFEST = "latentry.json"
FP32 = "onnxruntime-fp32"
"""The build that every version has, and by which the others are judged."""
MOST_BATCH = 1024
MOST_GOLDENS = 64
_MOST_COUNT = 2**32 - 1  # what Triton's configuration takes; of microseconds, more than an hour

RowMode = Literal["batch", "single"]
"""How rows are computed: as many at a time as come, or each in a run of its own."""
WORD = "[a-z][a-z0-9_]{0,31}"
Word = Annotated[str, Field(pattern=f"^{WORD}$")]


class Model(Strict):
    """What draws the image: ``model.json``.

    Attributes:
        networks: The FP32 network of each stage that has one, by the name of its file.
    """

    format: Literal[3] = FORMAT
    spec: GeneratorSpec
    networks: dict[str, FileRecord]
    seed_contract: Literal[1] = SEED_CONTRACT

    @model_validator(mode="after")
    def _has_its_networks(self) -> Self:
        try:
            check_networks("networks", self.networks, self.spec)
        except EntryError as error:  # pydantic tells ValueErrors only
            raise ValueError(str(error).removesuffix("; export again")) from error
        return self


@dataclass(frozen=True)
class StoredModel:
    """A ``model.json``: its text, which has the digest, and what the text says."""

    text: bytes
    content: Model

    @cached_property
    def digest(self) -> str:
        """The model digest."""
        return hashlib.sha256(self.text).hexdigest()


class ExportRecord(Strict):
    """Where a version came from: ``record.json``.

    Attributes:
        model: The model digest.
        checkpoint_digest: SHA-256 of what the network was loaded from.
        architecture: How the network is called.
        opset: Of the ONNX files.
        files: What else lies in the folder of the version.
    """

    format: Literal[3] = FORMAT
    model: Sha256
    checkpoint_digest: str
    architecture: str
    opset: int
    files: dict[str, FileRecord]
    tools: dict[str, str]
    host: str
    created: str

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        taken = {MODEL_JSON, RECORD_JSON, BUILDS, DEFAULT_BUILD, OLD_MANIFEST}
        _check_names("files", self.files, taken)
        return self


class Parity(Strict):
    """What a proof found: of the FP32 build beside torch, of another beside the FP32 build.

    ``latentry.export.proofs.parity`` makes it, and ``build_proof``.

    Attributes:
        engine_class: The engine class that was proved.
        seeds: The seeds 0 .. seeds-1 were drawn.
        batch_sizes: At each of these, and equal to the bit among them.
        tolerance: The largest difference that is allowed; None where a gate judges the samples.
        differences: By float output, the largest difference, in units of the output's largest
            value where that is above 1.
        levels: Largest difference of an element of the uint8 outputs; of label maps any number.
        level_fraction: Share of their elements that differ.
        peak: Largest absolute value in the samples; not in what goes between networks.
        warnings: What is allowed and looks wrong, for people.
    """

    engine_class: str
    seeds: int
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_BATCH)], ...], Field(min_length=1)
    ]
    tolerance: FiniteFloat | None
    differences: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    levels: int
    level_fraction: FiniteFloat
    peak: FiniteFloat
    warnings: tuple[str, ...]


class GoldenRecord(Strict):
    """Golden samples: how many, and what drew them."""

    count: Annotated[int, Field(ge=1, le=MOST_GOLDENS)]
    engine_class: str


class Gate(Strict):
    """What a build in other numbers than FP32 was found to draw, beside FP32 at the same seeds.

    ``latentry.export.gates`` measures it, and says what the words mean.

    Attributes:
        samples: How many were compared: of the seeds 0 .. samples-1, where seeds draw.
        found: Figures by name.
        bounds: What was allowed, by the names of the figures.
        reference: What a Frechet distance is a share of; empty where none was measured.
    """

    samples: Annotated[int, Field(ge=1)]
    found: dict[str, FiniteFloat]
    bounds: dict[str, FiniteFloat]
    reference: str = ""


class ServingPart(Strict):
    """How Triton runs a build; may be tuned without changing any image."""

    max_batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)] = 32
    max_queue_delay_microseconds: Annotated[int, Field(ge=0, le=_MOST_COUNT)] = 0
    max_queue_size: Annotated[int, Field(ge=0, le=_MOST_COUNT)] = 0
    instances: Annotated[int, Field(ge=1, le=64)] = 2
    threads: Annotated[int, Field(ge=0, le=256)] = 0


class Build(Strict):
    """One way to run a model: ``build.json``.

    Attributes:
        model: The model digest.
        engine: What runs the networks.
        precision: In what numbers.
        rows: Whether a batch may be computed as one, or every row alone, because some operator
            rounds a row otherwise beside other rows.
        artefacts: What the engine loads for each network of the spec, by the name of its file.
        parity: The proof.
        files: What else lies in the folder of the build.
        speed: Samples per second over those of the FP32 build, measured when this one was made; 1
            for that one itself.
        gate: How far its samples are from FP32's; None where they must be as near as an export's.
    """

    format: Literal[3] = FORMAT
    model: Sha256
    engine: Word
    precision: Word
    rows: RowMode = "batch"
    artefacts: dict[str, FileRecord]
    parity: Parity
    goldens: GoldenRecord
    files: dict[str, FileRecord]
    speed: FiniteFloat = 1.0
    gate: Gate | None = None
    tools: dict[str, str]
    host: str
    created: str
    serving: ServingPart

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        _check_names("artefacts", self.artefacts, {BUILD_JSON})
        _check_names("files", self.files, {BUILD_JSON, *self.artefacts})
        return self

    @property
    def name(self) -> str:
        """How the build is called, and its folder."""
        return f"{self.engine}-{self.precision}"

    @property
    def size(self) -> int:
        """What its files take, in bytes."""
        return sum(record.size for record in [*self.artefacts.values(), *self.files.values()])

    @property
    def digest(self) -> str:
        """The build digest: SHA-256 of a few lines that anybody can write."""
        lines = [
            f"model {self.model}",
            f"engine {self.engine}",
            f"precision {self.precision}",
            f"rows {self.rows}",
            *(f"{record.sha256}  {name}" for name, record in sorted(self.artefacts.items())),
        ]
        return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def check_networks(what: str, files: dict[str, FileRecord], spec: GeneratorSpec) -> None:
    """Check that there is one file for each network of ``spec``; raises EntryError."""
    if files.keys() != (wanted := {f"{network}.onnx" for network in spec.networks}):
        raise EntryError(f"{what} names {sorted(files)}, not {sorted(wanted)}; export again")


def stored_model(model: Model) -> StoredModel:
    """Return ``model`` as it is to be stored."""
    return StoredModel(json_bytes(model), model)


def read_model(folder: Path) -> StoredModel:
    """Return the model of the version in ``folder``.

    Raises:
        EntryError: It cannot be read or is not understood.
    """
    path = folder / MODEL_JSON
    text = read_entry_file(path)
    return StoredModel(text, content_of(path, text, Model))


def check_model(path: Path, named: str, model: StoredModel) -> None:
    """Check that the file at ``path``, which names a model digest, is about ``model``.

    Raises:
        EntryError: It is not.
    """
    if named != model.digest:
        raise EntryError(
            f"{MODEL_JSON} was changed, or belongs to another version: its SHA-256 is "
            f"{model.digest}, {path} says {named}; export again"
        )


def _check_names(what: str, files: dict[str, FileRecord], taken: set[str]) -> None:
    for name in files:
        if not is_plain_name(name) or name in taken:
            raise ValueError(f"{what} names {name!r}, which is no file beside them")
