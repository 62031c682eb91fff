"""Measuring a published build again: beside FP32, over samples that nobody has judged it by."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from latentry.contract.errors import BadRequest
from latentry.contract.seeds import MAX_SEED
from latentry.export.example_pictures import NONE, read_examples
from latentry.export.gates.bounds import BOUNDS, bounds_of
from latentry.export.gates.gate import (
    LEAST_FOR_FRECHET,
    MOST_SAMPLES,
    GateFinding,
    run_gate,
)
from latentry.export.gates.samples import PairedSamples
from latentry.serving.entries.manifests import FP32
from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.entries.tuning import most_proved_batch
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines.registry import load_network
from latentry.serving.runtime.generator import load_engines

STRICTEST = "fp16"


def evaluate_build(
    repository: Path,
    name: str,
    build: str | None,
    *,
    samples: int | None = None,
    first_seed: int = 0,
    bounds: Mapping[str, float] | None = None,
    examples: Path | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Entry, GateFinding]:
    """Compare a build of a model's newest version with its FP32 build; nothing is changed.

    Args:
        repository: The model repository.
        name: The model.
        build: The build; None for the default.
        samples: How many to begin with; None for 4,000.
        first_seed: Of the first sample.
        bounds: Other bounds than it was made with, by name. A build without a gate is held to those
            of ``fp16``, the strictest.
        examples: A folder of pictures that go in.
        progress: Told how many samples have been compared.

    Returns:
        The entry with the build, and what was found.

    Raises:
        NotFound: There is no such model or build.
        EngineMissing: It cannot run here.
        EntryError: The version is damaged.
        BadRequest: A number or a bound is not allowed.
        ExportRefused: The build gives NaN or infinity.
    """
    if samples is not None and not LEAST_FOR_FRECHET <= samples <= MOST_SAMPLES:
        raise BadRequest(f"samples is {samples}; it takes {LEAST_FOR_FRECHET} to {MOST_SAMPLES}")
    if not 0 <= first_seed <= MAX_SEED - MOST_SAMPLES:
        raise BadRequest(f"first_seed is {first_seed}; it takes 0 to {MAX_SEED - MOST_SAMPLES}")
    (reference,) = newest_entries(repository, (name,), {name: FP32})
    (entry,) = newest_entries(repository, (name,), {name: build} if build else None)
    for one in (reference, entry):
        verify_entry(one)
    gate = entry.build.gate
    known = bounds_of(entry.build.precision if gate else STRICTEST, bounds or {})
    allowed = {**(known or BOUNDS[STRICTEST]), **(gate.bounds if gate else {}), **(bounds or {})}
    load = partial(load_network, threads=0)
    pictures = read_examples(entry.spec, examples) if examples else NONE
    paired = PairedSamples(
        entry.spec,
        load_engines(reference, load),
        load_engines(entry, load),
        most_proved_batch(entry),
        pictures.judging,
        first_seed=first_seed,
    )
    return entry, run_gate(entry.spec, paired, allowed, least=samples, progress=progress)
