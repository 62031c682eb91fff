"""Adding a build to a published version: made, proved against its FP32 build, and published."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.files import read_regular
from latentry.contract.system import time_now
from latentry.export.proofs.build_proof import BuildFinding, Engines, prove_build
from latentry.serving.entries.builds import add_build, check_is_new
from latentry.serving.entries.goldens import GOLDEN_FILE, Goldens, golden_bytes, read_goldens
from latentry.serving.entries.manifests import (
    FP32,
    MOST_GOLDENS,
    Build,
    GoldenRecord,
    RowMode,
)
from latentry.serving.entries.repository import Entry, newest_entries, read_entry
from latentry.serving.entries.sealed import file_record
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines.registry import find_provider, load_network
from latentry.serving.runtime.generator import Generator

LEAST_GAIN = 1.2
"""How many times as fast as the FP32 build one must be to become the default."""


def build_model(
    repository: Path,
    name: str,
    engine: str,
    precision: str,
    *,
    may_be_default: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> Entry:
    """Add a build to the newest version of a model; return the entry with it.

    It becomes the default where it is at least :data:`LEAST_GAIN` times as fast as the FP32 build.

    Args:
        repository: The model repository.
        name: The model.
        engine: What is to run it.
        precision: In what numbers.
        may_be_default: Whether it may become the default.
        on_step: Called with a line for people before each step.

    Raises:
        NotFound: There is no such model or engine.
        EngineMissing: The engine cannot run here.
        BadRequest: It does not know this precision, or there is such a build already.
        ExportRefused: The build draws something else; nothing was added.
        EntryError: The version is damaged.
    """
    base = _base(repository, name, engine, precision)
    on_step(f"making {engine}-{precision}")
    networks = _networks(base)
    made = _make(base, networks, engine, precision)
    on_step(f"proving it against {FP32}")
    reference = _load(base.build, networks)
    most = max(base.build.parity.batch_sizes)
    finding = prove_build(base.spec, reference, made.load, most)
    on_step("drawing the goldens")
    goldens = _goldens(base, made.load(finding.rows))
    files = {GOLDEN_FILE: golden_bytes(goldens)}
    build = _finished(made.build, finding, len(goldens), files)
    on_step("publishing")
    is_default = may_be_default and finding.speed >= LEAST_GAIN
    return add_build(repository, base, build, {**made.artefacts, **files}, is_default=is_default)


@dataclass(frozen=True)
class _Made:
    """What an engine's provider made of the FP32 networks, and a build that is not proved yet."""

    build: Build
    artefacts: Mapping[str, bytes]

    def load(self, rows: RowMode) -> Engines:
        return _load(self.build.model_copy(update={"rows": rows}), self.artefacts)


def _base(repository: Path, name: str, engine: str, precision: str) -> Entry:
    """Return the newest version with its FP32 build, once all that can be known beforehand fits."""
    provider = find_provider(engine)
    if precision not in provider.precisions:
        known = ", ".join(provider.precisions)
        raise BadRequest(f"{engine} does not run {precision}; it runs {known}")
    (newest,) = newest_entries(repository, (name,))
    base = read_entry(newest.folder, FP32)
    check_is_new(base, f"{engine}-{precision}")
    provider.expect(precision)
    verify_entry(base)
    return base


def _networks(base: Entry) -> dict[str, bytes]:
    """Return the FP32 networks, by the name of their files."""
    return {
        file: read_regular(base.build_folder / file, most=record.size)
        for file, record in base.build.artefacts.items()
    }


def _make(base: Entry, networks: Mapping[str, bytes], engine: str, precision: str) -> _Made:
    provider = find_provider(engine)
    artefacts = {file: provider.make(data, precision) for file, data in networks.items()}
    records = {file: file_record(data) for file, data in artefacts.items()}
    changes = {"engine": engine, "precision": precision, "artefacts": records}
    return _Made(base.build.model_copy(update=changes), artefacts)


def _load(build: Build, artefacts: Mapping[str, bytes]) -> Engines:
    return {
        file.removesuffix(".onnx"): load_network(data, build, threads=0)
        for file, data in artefacts.items()
    }


def _finished(
    draft: Build, finding: BuildFinding, goldens: int, files: Mapping[str, bytes]
) -> Build:
    """Return the build with its proof; what was copied of FP32 and is another one's goes."""
    drawn_by = finding.parity.engine_class
    return draft.model_copy(
        update={
            "rows": finding.rows,
            "parity": finding.parity,
            "goldens": GoldenRecord(count=goldens, engine_class=drawn_by),
            "files": {file: file_record(data) for file, data in files.items()},
            "speed": finding.speed,
            "tools": {tool: version(tool) for tool in ("numpy", "latentry")},
            "host": f"{platform.system()}-{platform.machine()}",
            "created": time_now(),
        }
    )


def _goldens(base: Entry, engines: Engines) -> Goldens:
    """Return the goldens of the FP32 build as ``engines`` draw them."""
    inputs = read_goldens(base).inputs
    answer = Generator(base.spec, dict(engines), max_batch_size=MOST_GOLDENS).answer([inputs])[0]
    if isinstance(answer, LatentryError):
        raise answer
    return Goldens(inputs, answer)
