"""The Python clients of a Latentry server: seeded images over gRPC, single, in batches, streamed.

::

    from latentry.clients import Client

    with Client("127.0.0.1:8001") as client:
        result = client.generate("digits", seeds=range(16), class_label=7)
        result.grid().save("sevens.png")
"""

if __name__ != "latentry.clients":
    raise ImportError(f"import this package as latentry.clients, not as {__name__}")

from latentry.clients.aio import AsyncClient
from latentry.clients.client import Client
from latentry.clients.results import GenerateResult, Health, StreamChunk
from latentry.contract.errors import (
    BadRequest,
    Busy,
    Draining,
    InvalidOutput,
    LatentryError,
    NotFound,
    ServerFault,
    ServerGone,
    SpecError,
    TimedOut,
)
from latentry.contract.transport import AsyncTransport, ModelInfo, Reply, Transport

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "BadRequest",
    "Busy",
    "Client",
    "Draining",
    "GenerateResult",
    "Health",
    "InvalidOutput",
    "LatentryError",
    "ModelInfo",
    "NotFound",
    "Reply",
    "ServerFault",
    "ServerGone",
    "SpecError",
    "StreamChunk",
    "TimedOut",
    "Transport",
]
