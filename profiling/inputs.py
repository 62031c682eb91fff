"""What is sent to a served model: the ``perf_input.json`` of its entry."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from latentry.contract.errors import LatentryError
from latentry.contract.kinds.formats import Format
from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import input_row_bytes


def sample_bytes(spec: GeneratorSpec) -> int:
    """Return what one sample of ``perf_input.json`` and its answer take on the wire."""
    route = spec.route(frozenset())
    given = [item.name for item in route.inputs if item not in route.drawn]
    return input_row_bytes(spec, given) + spec.row_bytes(Format.RAW)


@contextmanager
def valid_inputs(repository: Path, model: str, url: str) -> Iterator[tuple[Path, Any]]:
    """Give the ``perf_input.json`` of what is being served, and its entry in the repository.

    Where the repository's newest version is not what is served, the file is made from the served
    spec, and the entry is None.
    """
    from latentry.clients.client import Client
    from latentry.serving.entries.builds import with_build_digest
    from latentry.serving.entries.examples import PERF_INPUT_FILE, perf_input
    from latentry.serving.entries.repository import newest_entries

    with Client(url) as client:
        info = client.info(model)
    entry = None
    # Where there is none, or it is damaged, what is served is what counts.
    with suppress(LatentryError):
        (newest,) = newest_entries(repository, (model,))
        entry = with_build_digest(newest, info.build_digest)
    if entry is not None:
        yield entry.folder / PERF_INPUT_FILE, entry
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / PERF_INPUT_FILE
        path.write_bytes(perf_input(info.spec))
        yield path, None
