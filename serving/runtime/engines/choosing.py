"""Which build of an entry runs here."""

import logging

from latentry.serving.entries.manifests import FP32
from latentry.serving.entries.repository import Entry, read_entry
from latentry.serving.runtime.engines import EngineMissing
from latentry.serving.runtime.engines.registry import expected_class

_LOGGER = logging.getLogger(__name__)


def runnable(entry: Entry, *, is_asked: bool) -> Entry:
    """Return ``entry`` as it is, or with its FP32 build where this machine lacks the engine.

    That is logged in one line; the build that somebody asked for is never replaced.

    Raises:
        EngineMissing: The build that was asked for cannot run here, or not even FP32 can.
    """
    try:
        expected_class(entry.build)
    except EngineMissing as error:
        if is_asked or entry.build.name == FP32:
            raise
        _LOGGER.warning(
            "%s is run by %s instead of its default %s: %s",
            *(entry.name, FP32, entry.build.name, error),
        )
        return read_entry(entry.folder, FP32)
    return entry
