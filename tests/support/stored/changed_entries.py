"""Entries that hold something else, with JSON files that are right about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.goldens import GOLDEN_FILE, Goldens, golden_bytes
from latentry.serving.entries.manifests import BUILD_JSON, BUILDS, stored_model
from latentry.serving.entries.publishing import Draft
from latentry.serving.entries.repository import Entry
from latentry.serving.entries.sealed import file_record, sealed_bytes


def rewrite_build(entry: Entry, **changes: Any) -> Entry:
    """Write the build of ``entry`` with these fields changed; return it as it is then."""
    changed = replace(entry, build=entry.build.model_copy(update=changes))
    (entry.build_folder / BUILD_JSON).write_bytes(sealed_bytes(changed.build))
    return changed


def rewrite_goldens(entry: Entry, goldens: Goldens, engine_class: str) -> None:
    """Give ``entry`` other goldens, as drawn by ``engine_class``."""
    data, build = golden_bytes(goldens), entry.build
    (entry.build_folder / GOLDEN_FILE).write_bytes(data)
    rewrite_build(
        entry,
        files={**build.files, GOLDEN_FILE: file_record(data)},
        goldens=build.goldens.model_copy(update={"engine_class": engine_class}),
    )


def with_spec(entry: Entry, spec: GeneratorSpec) -> Entry:
    """Return ``entry`` with another spec; nothing is written."""
    model = stored_model(entry.model.content.model_copy(update={"spec": spec}))
    return replace(entry, model=model)


def draft_of(entry: Entry, change: Any) -> Draft:
    """Return ``entry`` as it would be published anew, with ``change`` made to each network."""
    files = {path: (entry.folder / path).read_bytes() for path in entry.files()}
    inside = Path(BUILDS, entry.build.name)
    networks = {name: change(files[inside / name]) for name in entry.build.artefacts}
    records = {name: file_record(data) for name, data in networks.items()}
    model = stored_model(entry.model.content.model_copy(update={"networks": records}))
    named = {"model": model.digest}
    return Draft(
        model,
        entry.record.model_copy(update=named),
        entry.build.model_copy(update={**named, "artefacts": records}),
        {name: files[Path(name)] for name in entry.record.files},
        {**{name: files[inside / name] for name in entry.build.files}, **networks},
    )
