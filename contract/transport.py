"""The seam between a client and whatever answers it.

A transport moves arrays and knows nothing of seeds, splitting or retries; the client does the rest.
There are two that ship: gRPC to a Triton server (``latentry.clients``) and
:class:`latentry.serving.runtime.local.LocalTransport`, which draws in this process.
"""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from latentry.contract.spec import GeneratorSpec
from latentry.contract.wire import Arrays


@dataclass(frozen=True)
class ModelInfo:
    """A model that is being served.

    Attributes:
        name: Its name.
        version: Its version, as Triton spells it.
        model_digest: SHA-256 that names what draws the images.
        build: Name of the build that runs it, as onnxruntime-fp32.
        build_digest: SHA-256 that names the build.
        engine_class: What draws them here; the images of a build are equal to the bit within one
            class.
        spec: What it takes and gives.
        max_batch_size: Most samples that one unary request may carry.
    """

    name: str
    version: str
    model_digest: str
    build: str
    build_digest: str
    engine_class: str
    spec: GeneratorSpec
    max_batch_size: int

    @property
    def identity(self) -> tuple[str, str, str]:
        """What else than seeds and inputs an image depends on."""
        return self.model_digest, self.build_digest, self.engine_class


@dataclass(frozen=True)
class Reply:
    """One answer: output tensors by name, and the version of the model that gave them."""

    version: str
    outputs: dict[str, NDArray[Any]]


class Transport(Protocol):
    """Carries requests to a server and answers back; every method raises LatentryError only."""

    def ready(self) -> bool:
        """Whether the server answers and every model is ready; False when nobody answers.

        Where it answers, and something keeps it from drawing, it may raise that.
        """
        ...

    def model_names(self) -> list[str]:
        """Names of the generators being served, sorted."""
        ...

    def model_info(self, model: str) -> ModelInfo:
        """What is being served under ``model``; raises NotFound."""
        ...

    def infer(self, model: str, inputs: Arrays) -> Future[Reply]:
        """Start one unary request; the future holds a Reply or a LatentryError."""
        ...

    def stream(self, model: str, requests: Iterator[Arrays]) -> Iterator[Reply]:
        """Send stream requests to ``model``, each once the one before it is answered in full.

        Yields every chunk as a Reply. Closing the iterator cancels what is under way.
        """
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


class AsyncTransport(Protocol):
    """The same for asyncio."""

    async def ready(self) -> bool:
        """See :meth:`Transport.ready`."""
        ...

    async def model_names(self) -> list[str]:
        """See :meth:`Transport.model_names`."""
        ...

    async def model_info(self, model: str) -> ModelInfo:
        """See :meth:`Transport.model_info`."""
        ...

    async def infer(self, model: str, inputs: Arrays) -> Reply:
        """See :meth:`Transport.infer`; cancelling the task abandons the answer."""
        ...

    def stream(self, model: str, requests: Iterator[Arrays]) -> AsyncIterator[Reply]:
        """See :meth:`Transport.stream`."""
        ...

    async def close(self) -> None:
        """See :meth:`Transport.close`."""
        ...
