"""OpenVINO on the CPU, as builds name it; it is imported only to load a network."""

from latentry.contract.errors import BadRequest
from latentry.serving.entries.manifests import Build
from latentry.serving.runtime.engines import Engine, EngineMissing, Feeds
from latentry.serving.runtime.engines.engine_class import (
    FAST_FLAGS,
    cpu_flags,
    installed_openvino,
    openvino_class,
)


class OpenVinoProvider:
    """See :class:`latentry.serving.runtime.engines.EngineProvider`."""

    precisions = ("fp32", "bf16", "int8")

    def expect(self, precision: str) -> str:
        """Return the engine class here.

        Raises:
            EngineMissing: OpenVINO is not installed, or the processor lacks BF16.
        """
        if precision not in self.precisions:
            raise BadRequest(f"openvino runs {', '.join(self.precisions)}, not {precision}")
        version = installed_openvino()
        if version is None:
            raise EngineMissing('openvino is not installed here: pip install "latentry[openvino]"')
        # Without them OpenVINO would compute in FP32, and say so nowhere.
        if precision == "bf16" and not cpu_flags() & (needed := FAST_FLAGS["bf16"]):
            raise EngineMissing(
                f"bf16 needs a processor with {' or '.join(sorted(needed))}; this one has neither"
            )
        return openvino_class(precision, version)

    def make(self, network: bytes, precision: str, feeds: Feeds) -> bytes:
        """Return the network as it is, or quantised."""
        if precision != "int8":
            return network
        from latentry.serving.runtime.engines.quantization import quantized

        return quantized(network, feeds)

    def load(self, artefact: bytes, build: Build, *, threads: int) -> Engine:
        """Load a network."""
        from latentry.serving.runtime.engines.openvino_cpu import OpenVinoEngine

        return OpenVinoEngine(artefact, build.precision, threads=threads, rows=build.rows)
