"""Which engines there are: ours, and those of installed packages (group ``latentry.engines``)."""

from functools import cache
from importlib.metadata import entry_points

from latentry.contract.errors import LatentryError, NotFound, listed
from latentry.contract.importing import told
from latentry.serving.entries.manifests import Build
from latentry.serving.runtime.engines import Engine, EngineMissing, EngineProvider
from latentry.serving.runtime.engines.onnxruntime_provider import OnnxRuntimeProvider
from latentry.serving.runtime.engines.openvino_provider import OpenVinoProvider

GROUP = "latentry.engines"
_OURS: dict[str, EngineProvider] = {
    "onnxruntime": OnnxRuntimeProvider(),
    "openvino": OpenVinoProvider(),
}


def find_provider(engine: str) -> EngineProvider:
    """Return the engine of this name.

    Raises:
        NotFound: No installed package has it.
        EngineMissing: The package that has it cannot be imported here.
    """
    if engine in _OURS:
        return _OURS[engine]
    names = sorted(entry.name for entry in entry_points(group=GROUP))
    if engine not in names:
        raise NotFound(
            f"engine {engine!r} is not installed here; there: {listed([*_OURS, *names])}"
        )
    return _load_provider(engine)


def expected_class(build: Build) -> str:
    """Return the engine class of ``build`` on this machine, without loading it; found out once.

    Raises:
        EngineMissing: It cannot be loaded here.
    """
    return expect_class(build.engine, build.precision)


@cache
def expect_class(engine: str, precision: str) -> str:
    """Return the engine class of an engine; see :func:`expected_class`."""
    try:
        expected = find_provider(engine).expect(precision)
    except EngineMissing:
        raise
    except LatentryError as error:
        raise EngineMissing(str(error)) from error
    except Exception as error:  # whatever an engine does to find out
        if engine in _OURS:
            raise  # an extra that is missing: the command line says which
        raise EngineMissing(f"engine {engine!r} fails: {told(error)}") from error
    if not isinstance(expected, str):
        raise EngineMissing(f"engine {engine!r} calls its class {expected!r}, which is no text")
    return expected


def load_network(artefact: bytes, build: Build, *, threads: int) -> Engine:
    """Load a network of ``build``; ``threads`` 0 means one for each core.

    Raises:
        EngineMissing: It is not of the class that was expected here, so that its images would be
            others than those that its class is told to draw.
    """
    expected = expected_class(build)
    try:
        engine = find_provider(build.engine).load(artefact, build, threads=threads)
    except LatentryError:
        raise
    except Exception as error:  # an engine of anybody's
        if build.engine in _OURS:
            raise
        raise EngineMissing(f"{build.name} cannot be loaded: {told(error)}") from error
    if engine.engine_class != expected:
        raise EngineMissing(
            f"the build {build.name} is of the engine class {engine.engine_class} once it is "
            f"loaded, and {expected} was expected; it is not served"
        )
    return engine


@cache
def _load_provider(engine: str) -> EngineProvider:
    (entry, *_) = entry_points(group=GROUP, name=engine)
    try:
        provider: EngineProvider = entry.load()()
    except Exception as error:  # whatever a package does as it is imported
        raise EngineMissing(f"engine {engine!r} cannot be loaded: {told(error)}") from error
    return provider
