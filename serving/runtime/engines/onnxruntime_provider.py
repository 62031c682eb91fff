"""ONNX Runtime on the CPU, as builds name it; it is imported only to load a network."""

from latentry.contract.errors import BadRequest
from latentry.serving.entries.manifests import Build
from latentry.serving.runtime.engines import Engine
from latentry.serving.runtime.engines.engine_class import engine_class


class OnnxRuntimeProvider:
    """See :class:`latentry.serving.runtime.engines.EngineProvider`."""

    precisions = ("fp32",)

    def expect(self, precision: str) -> str:
        """Return the engine class here; raises ModuleNotFoundError where it is not installed."""
        if precision not in self.precisions:
            raise BadRequest(f"onnxruntime runs {', '.join(self.precisions)}, not {precision}")
        return engine_class()

    def make(self, network: bytes, precision: str) -> bytes:
        """Return the network as it is."""
        return network

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        """Load a network."""
        from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

        return OnnxRuntimeEngine(artefact, threads=threads, rows=build.rows)
