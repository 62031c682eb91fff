"""Which build of an entry runs here."""

import logging

from latentry.serving.entries.manifests import FP32
from latentry.serving.entries.repository import Entry, read_entry
from latentry.serving.runtime.engines import EngineMissing
from latentry.serving.runtime.engines.registry import expected_class

_LOGGER = logging.getLogger(__name__)


def with_build(entry: Entry, asked: str | None) -> Entry:
    """Return ``entry`` with the build that was asked for, its default one, or FP32 in its place.

    Where this machine lacks the engine of the default, that is logged in one line.

    Raises:
        NotFound: It has no such build.
        EngineMissing: The build that was asked for cannot run here, or not even FP32 can.
    """
    if asked is not None:
        entry = read_entry(entry.folder, asked)
    try:
        expected_class(entry.build)
    except EngineMissing as error:
        if asked is not None or entry.build.name == FP32:
            raise
        _LOGGER.warning(
            "%s is run by %s instead of its default %s: %s",
            *(entry.name, FP32, entry.build.name, error),
        )
        return read_entry(entry.folder, FP32)
    return entry
