"""Which engines there are: ours, and those of installed packages (group ``latentry.engines``)."""

from functools import cache
from importlib.metadata import entry_points

from latentry.contract.errors import NotFound, listed
from latentry.serving.entries.manifests import Build
from latentry.serving.runtime.engines import Engine, EngineMissing, EngineProvider
from latentry.serving.runtime.engines.onnxruntime_provider import OnnxRuntimeProvider

GROUP = "latentry.engines"
_OURS: dict[str, EngineProvider] = {"onnxruntime": OnnxRuntimeProvider()}


def find_provider(engine: str) -> EngineProvider:
    """Return the engine of this name.

    Raises:
        NotFound: No installed package has it.
    """
    found = _OURS.get(engine) or _others().get(engine)
    if found is None:
        raise NotFound(
            f"engine {engine!r} is not installed here; there: {listed([*_OURS, *_others()])}"
        )
    return found


def expected_class(build: Build) -> str:
    """Return the engine class of ``build`` on this machine, without loading it.

    Raises:
        EngineMissing: It cannot be loaded here.
    """
    try:
        return find_provider(build.engine).expect(build.precision)
    except NotFound as error:
        raise EngineMissing(str(error)) from error


def load_network(artefact: bytes, build: Build, *, threads: int) -> Engine:
    """Load a network of ``build``; ``threads`` 0 means one for each core.

    Raises:
        EngineMissing: It is not of the class that was expected here, so that its images would be
            others than those that its class is told to draw.
    """
    provider = find_provider(build.engine)
    expected = provider.expect(build.precision)
    engine = provider.load(artefact, build, threads=threads)
    if engine.engine_class != expected:
        raise EngineMissing(
            f"the build {build.name} is of the engine class {engine.engine_class} once it is "
            f"loaded, and {expected} was expected; it is not served"
        )
    return engine


@cache
def _others() -> dict[str, EngineProvider]:
    return {entry.name: entry.load()() for entry in entry_points(group=GROUP)}
