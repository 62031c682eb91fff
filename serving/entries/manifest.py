"""The manifest ``latentry.json``: what an entry is, how it was made, how it is served.

The **model digest** is the SHA-256 of the canonical JSON of the ``model`` part. It names what draws
an image and nothing else, so tuning the ``serving`` part changes no image and no digest.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from latentry.contract.errors import EntryError
from latentry.contract.files import is_plain_name, read_regular
from latentry.contract.seeds import SEED_CONTRACT
from latentry.contract.spec import GeneratorSpec
from latentry.contract.strict import Strict, explain

MANIFEST_FILE = "latentry.json"
MOST_BATCH = 1024
MOST_GOLDENS = 64
_MOST_BYTES = 16 * 2**20
_MOST_COUNT = 2**32 - 1  # what Triton's configuration takes; of microseconds, more than an hour
_SEAL = b',\n  "sha256": "'

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Strict):
    """SHA-256 and size in bytes of one file."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class ModelPart(Strict):
    """What draws the image."""

    spec: GeneratorSpec
    artefacts: dict[str, FileRecord]
    seed_contract: Literal[1] = SEED_CONTRACT

    @model_validator(mode="after")
    def _has_its_networks(self) -> Self:
        if self.artefacts.keys() != (
            wanted := {f"{network}.onnx" for network in self.spec.networks}
        ):
            raise ValueError(f"artefacts are {sorted(self.artefacts)}, not {sorted(wanted)}")
        return self


class Parity(Strict):
    """What the export's proof found; ``latentry.export.proofs.parity`` makes it.

    Attributes:
        engine_class: The engine class that was compared with torch.
        seeds: The seeds 0 .. seeds-1 were drawn.
        batch_sizes: At each of these, and equal to the bit among them.
        tolerance: The largest difference that is allowed.
        differences: By float output, the largest difference from torch, in units of the output's
            largest value where that is above 1.
        levels: Largest difference of an element of the uint8 outputs, 0 or 1.
        level_fraction: Share of their elements that differ.
        peak: Largest absolute value in the samples; not in what goes between networks.
        warnings: What is allowed and looks wrong, for people.
    """

    engine_class: str
    seeds: int
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_BATCH)], ...], Field(min_length=1)
    ]
    tolerance: FiniteFloat
    differences: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    levels: int
    level_fraction: FiniteFloat
    peak: FiniteFloat
    warnings: tuple[str, ...]


class GoldenRecord(Strict):
    """Golden samples: how many, and what drew them."""

    count: Annotated[int, Field(ge=1, le=MOST_GOLDENS)]
    engine_class: str


class RecordPart(Strict):
    """How the entry was made.

    Attributes:
        rows: Whether a batch may be computed as one, or every row alone, because some operator
            rounds a row otherwise beside other rows.
    """

    checkpoint_digest: str
    architecture: str
    opset: int
    precision: Literal["fp32"]
    rows: Literal["batch", "single"] = "batch"
    parity: Parity
    goldens: GoldenRecord
    files: dict[str, FileRecord]
    tools: dict[str, str]
    host: str
    created: str


class ServingPart(Strict):
    """How Triton runs the entry; may be tuned without changing any image."""

    max_batch_size: Annotated[int, Field(ge=1, le=MOST_BATCH)] = 32
    max_queue_delay_microseconds: Annotated[int, Field(ge=0, le=_MOST_COUNT)] = 0
    max_queue_size: Annotated[int, Field(ge=0, le=_MOST_COUNT)] = 0
    instances: Annotated[int, Field(ge=1, le=64)] = 2
    threads: Annotated[int, Field(ge=0, le=256)] = 0


class Manifest(Strict):
    """The three parts, and the SHA-256 that seals the file."""

    format: Literal[2] = 2
    model: ModelPart
    record: RecordPart
    serving: ServingPart

    @model_validator(mode="after")
    def _names_files_of_the_entry(self) -> Self:
        taken = {MANIFEST_FILE, *self.model.artefacts}
        for name in self.record.files:
            if not is_plain_name(name) or name in taken:
                raise ValueError(f"record.files names {name!r}, which is no file beside them")
        return self

    @cached_property
    def digest(self) -> str:
        """The model digest."""
        return hashlib.sha256(canonical_json(self.model.model_dump(mode="json"))).hexdigest()

    def files(self) -> dict[str, FileRecord]:
        """Return every file of the entry besides the manifest itself."""
        return {**self.model.artefacts, **self.record.files}


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces, as UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def file_record(data: bytes) -> FileRecord:
    """Return the record of a file with these bytes."""
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the file's bytes; the last line holds the SHA-256 of all that stands before it."""
    body = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    head = body.removesuffix("\n}").encode()
    return head + _SEAL + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in ``folder`` after checking its seal.

    Raises:
        EntryError: There is none, its seal is broken, or it is of another format.
    """
    path = folder / MANIFEST_FILE
    try:
        data = read_regular(path, most=_MOST_BYTES)
    except OSError as error:
        raise EntryError(
            f"{path} cannot be read ({error.strerror}): the entry is half-written or none; "
            "export it again, or delete the folder"
        ) from error
    head, _, tail = data.rpartition(_SEAL)
    found = hashlib.sha256(head).hexdigest()
    if tail != found.encode() + b'"\n}\n':
        sealed = tail[:64].decode(errors="replace") or "missing"
        raise EntryError(
            f"{path} was changed: its SHA-256 is {found}, the seal says {sealed}; export again"
        )
    try:
        return Manifest.model_validate_json(head + b"\n}")
    except ValidationError as error:
        # What else differs there follows from it, and would bury the advice.
        others = [item for item in error.errors() if item["loc"] == ("format",)]
        what = f"format: {others[0]['msg']}, of another version" if others else explain(error)
        raise EntryError(f"{path} is not understood: {what}; export again") from error
