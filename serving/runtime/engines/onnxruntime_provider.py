"""ONNX Runtime on the CPU, as builds name it; it is imported only to load a network."""

from latentry.contract.errors import BadRequest
from latentry.serving.entries.manifests import Build
from latentry.serving.runtime.engines import Engine, Feeds
from latentry.serving.runtime.engines.engine_class import engine_class


class OnnxRuntimeProvider:
    """See :class:`latentry.serving.runtime.engines.EngineProvider`."""

    precisions = ("fp32", "int8")

    def expect(self, precision: str) -> str:
        """Return the engine class here; raises ModuleNotFoundError where it is not installed."""
        if precision not in self.precisions:
            raise BadRequest(f"onnxruntime runs {', '.join(self.precisions)}, not {precision}")
        return engine_class(precision)

    def make(self, network: bytes, precision: str, feeds: Feeds) -> bytes:
        """Return the network as it is, or quantised."""
        if precision != "int8":
            return network
        from latentry.serving.runtime.engines.quantization import quantized

        return quantized(network, feeds)

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        """Load a network."""
        from latentry.serving.runtime.engines.onnxruntime_cpu import OnnxRuntimeEngine

        return OnnxRuntimeEngine(
            artefact, precision=build.precision, threads=threads, rows=build.rows
        )
