"""Adding a build to a published version: made, proved against its FP32 build, and published."""

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from latentry.contract.errors import BadRequest, ExportRefused, LatentryError
from latentry.contract.files import read_regular, write_atomic
from latentry.contract.importing import told
from latentry.contract.kinds.kind import Size
from latentry.contract.system import time_now
from latentry.contract.wire import Arrays
from latentry.export.calibration import feeds_of
from latentry.export.example_pictures import NONE, read_examples
from latentry.export.gates.bounds import bounds_of
from latentry.export.gates.gate import GateFinding, refuse, run_gate
from latentry.export.gates.report import REPORT_FILE, report_bytes
from latentry.export.gates.samples import PairedSamples
from latentry.export.proofs.build_proof import BuildFinding, Engines, prove_build
from latentry.serving.entries.builds import add_build, check_is_new
from latentry.serving.entries.goldens import GOLDEN_FILE, Goldens, golden_bytes, read_goldens
from latentry.serving.entries.manifests import (
    FP32,
    WORD,
    Build,
    GoldenRecord,
    RowMode,
)
from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.entries.sealed import file_record
from latentry.serving.entries.tuning import most_proved_batch
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines import EngineProvider, Feeds
from latentry.serving.runtime.engines.registry import expect_class, find_provider, load_network
from latentry.serving.runtime.generator import Generator

_AT_EACH_END = 8
LEAST_GAIN = 1.2
"""How many times as fast as the FP32 build one must be to become the default."""


def build_model(
    repository: Path,
    name: str,
    engine: str,
    precision: str,
    *,
    bounds: Mapping[str, float] | None = None,
    examples: Path | None = None,
    may_be_default: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> Entry:
    """Add a build to the newest version of a model; return the entry with it.

    It becomes the default where it is at least :data:`LEAST_GAIN` times as fast as the FP32 build.
    One in fewer bits is no use where it is not faster, and refused then.

    Args:
        repository: The model repository.
        name: The model.
        engine: What is to run it.
        precision: In what numbers.
        bounds: Other bounds than those of the precision, by name; see
            :mod:`latentry.export.gates.bounds`.
        examples: A folder of pictures that go in, for calibration and for the gate; see
            :func:`latentry.export.example_pictures.read_examples`.
        may_be_default: Whether it may become the default.
        on_step: Called with a line for people before each step.

    Raises:
        NotFound: There is no such model or engine.
        EngineMissing: The engine cannot run here.
        BadRequest: It does not know this precision, there is such a build already, or no such
            bound.
        ExportRefused: The build draws something else; nothing was added.
        EntryError: The version is damaged.
    """
    allowed = bounds_of(precision, bounds or {})
    base = _base(repository, name, engine, precision)
    on_step(f"making {engine}-{precision}")
    networks = _networks(base)
    reference = _load(base.build, networks)
    pictures = read_examples(base.spec, examples) if examples else NONE
    feeds = feeds_of(base.spec, reference, pictures.calibrating)
    made = _make(base, networks, feeds, engine, precision)
    on_step(f"proving it against {FP32}")
    most = most_proved_batch(base)
    finding = prove_build(base.spec, reference, made.load, most, is_exact=allowed is None)
    files = {}
    draft = made.build
    if allowed is not None:
        _check_faster(draft, finding)
        both = {"reference": reference, "build": finding.engines}
        judged = _through_gate(base, draft.name, both, allowed, pictures.judging, on_step)
        draft = draft.model_copy(update={"gate": judged.gate})
        files[REPORT_FILE] = report_bytes(base.name, draft.name, judged)
    on_step("drawing the goldens")
    goldens = _goldens(base, finding.engines)
    files[GOLDEN_FILE] = golden_bytes(goldens)
    build = _finished(draft, finding, len(goldens), files)
    on_step("publishing")
    is_default = may_be_default and finding.speed >= LEAST_GAIN
    return add_build(repository, base, build, {**made.artefacts, **files}, is_default=is_default)


@dataclass(frozen=True)
class _Made:
    """What an engine's provider made of the FP32 networks, and a build that is not proved yet."""

    build: Build
    artefacts: Mapping[str, bytes]

    def load(self, rows: RowMode, threads: int) -> Engines:
        return _load(self.build.model_copy(update={"rows": rows}), self.artefacts, threads)


def _base(repository: Path, name: str, engine: str, precision: str) -> Entry:
    """Return the newest version with its FP32 build, once all that can be known beforehand fits."""
    for what, word in (("engine", engine), ("precision", precision)):
        if not re.fullmatch(WORD, word):
            raise BadRequest(f"{what} {word!r} names no build; use 1 to 32 of a-z, 0-9 and _")
    provider = find_provider(engine)
    if precision not in provider.precisions:
        known = ", ".join(provider.precisions)
        raise BadRequest(f"{engine} does not run {precision}; it runs {known}")
    (base,) = newest_entries(repository, (name,), {name: FP32})
    check_is_new(base, f"{engine}-{precision}")
    expect_class(engine, precision)
    verify_entry(base)
    return base


def _networks(base: Entry) -> dict[str, bytes]:
    """Return the FP32 networks, by the name of their files."""
    return {
        file: read_regular(base.build_folder / file, most=record.size)
        for file, record in base.build.artefacts.items()
    }


def _make(
    base: Entry,
    networks: Mapping[str, bytes],
    feeds: Mapping[str, Feeds],
    engine: str,
    precision: str,
) -> _Made:
    provider = find_provider(engine)
    artefacts = {
        file: _made_of(provider, data, precision, feeds[file.removesuffix(".onnx")])
        for file, data in networks.items()
    }
    records = {file: file_record(data) for file, data in artefacts.items()}
    changes = {"engine": engine, "precision": precision, "artefacts": records}
    return _Made(base.build.model_copy(update=changes), artefacts)


def _made_of(provider: EngineProvider, network: bytes, precision: str, feeds: Feeds) -> bytes:
    try:
        made = provider.make(network, precision, feeds)
    except LatentryError:
        raise
    except Exception as error:  # an engine of anybody's
        raise ExportRefused(f"the engine cannot be built: {told(error)}") from error
    if not isinstance(made, bytes):
        raise ExportRefused(f"the engine made a {type(made).__name__}; it must be bytes")
    return made


def _check_faster(build: Build, finding: BuildFinding) -> None:
    """Refuse fewer bits that gain nothing; raises ExportRefused."""
    if finding.speed <= 1:
        raise ExportRefused(
            f"{build.name} draws {finding.speed:.2f} times as many samples a second as {FP32} on "
            "this processor, so it is no use here; nothing was added"
        )


def _through_gate(
    base: Entry,
    build: str,
    engines: Mapping[str, Engines],
    bounds: Mapping[str, float],
    pictures: Arrays,
    on_step: Callable[[str], None],
) -> GateFinding:
    """Return what the gate found; pictures of free size are judged at both ends, too.

    Raises:
        ExportRefused: The build does not pass it; what it drew stands in a page.
    """
    spec, together = base.spec, most_proved_batch(base)
    finding = run_gate(
        spec,
        PairedSamples(spec, engines["reference"], engines["build"], together, pictures),
        bounds,
        progress=lambda count: on_step(f"comparing its samples with {FP32}'s: {count:,}"),
    )
    findings = [finding]
    ends: tuple[Size, ...] = ("least", "largest") if spec.free_inputs else ()
    for size in ends:
        fixed = spec.at(size)
        samples = PairedSamples(fixed, engines["reference"], engines["build"], 1, {})
        worst = {"worst_psnr_db": bounds["worst_psnr_db"]}
        findings.append(run_gate(fixed, samples, worst, least=_AT_EACH_END))
    for found in findings:
        if found.faults:
            page = Path(f"latentry-gate-{base.name}-{build}.html").resolve()
            write_atomic(page, report_bytes(base.name, build, found))
            refuse(build, found, page)
    return finding


def _load(build: Build, artefacts: Mapping[str, bytes], threads: int = 0) -> Engines:
    return {
        file.removesuffix(".onnx"): load_network(data, build, threads=threads)
        for file, data in artefacts.items()
    }


def _finished(
    draft: Build, finding: BuildFinding, goldens: int, files: Mapping[str, bytes]
) -> Build:
    """Return the build with its proof; what was copied of FP32 and is another one's goes."""
    drawn_by = finding.parity.engine_class
    changes = {
        "rows": finding.rows,
        "parity": finding.parity,
        "goldens": GoldenRecord(count=goldens, engine_class=drawn_by),
        "files": {file: file_record(data) for file, data in files.items()},
        "speed": finding.speed,
        "tools": {tool: version(tool) for tool in ("numpy", "latentry")},
        "host": f"{platform.system()}-{platform.machine()}",
        "created": time_now(),
    }
    return draft.model_copy(update=changes)


def _goldens(base: Entry, engines: Engines) -> Goldens:
    """Return the goldens of the FP32 build as ``engines`` draw them, one by one."""
    known = read_goldens(base)
    generator = Generator(base.spec, dict(engines), max_batch_size=1)
    drawn: list[Arrays] = []
    for index in range(len(known)):
        (answer,) = generator.answer([known.request(index)])
        if isinstance(answer, LatentryError):
            raise answer
        drawn.append(answer)
    outputs = {name: np.concatenate([one[name] for one in drawn]) for name in drawn[0]}
    return Goldens(known.inputs, outputs)
