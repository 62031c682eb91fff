"""A connection to a Triton server, and what is known of its models while it stands."""

import threading
from typing import Any

from latentry.clients.transports.channel import Address, is_connected, open_channel
from latentry.clients.transports.codec import GRPCInferenceServiceStub
from latentry.clients.transports.grpc_library import library
from latentry.contract.errors import Draining, LatentryError, NotFound, ServerGone
from latentry.contract.transport import ModelInfo, Reply


class InfoCache:
    """What is known of models, as long as the server is surely the same one."""

    def __init__(self) -> None:
        self._infos: dict[str, ModelInfo] = {}

    def get(self, model: str) -> ModelInfo | None:
        """Return what is known of ``model``."""
        return self._infos.get(model)

    def put(self, info: ModelInfo) -> None:
        """Keep what was said of a model."""
        self._infos[info.name] = info

    def watch_channel(self, channel: Any) -> None:
        """Forget everything where the connection was lost."""
        if not is_connected(channel):
            self._infos.clear()

    def watched(self, error: LatentryError) -> LatentryError:
        """Return ``error``, having forgotten what it puts in doubt."""
        if isinstance(error, Draining | NotFound | ServerGone):
            self._infos.clear()
        return error

    def watch_reply(self, model: str, reply: Reply) -> None:
        """Forget a model of which another version has answered."""
        info = self._infos.get(model)
        if info is not None and info.version != reply.version:
            self._infos.pop(model, None)


class GrpcConnection:
    """A channel, the gRPC that it is of, and Triton's calls on it."""

    def __init__(self, address: Address, *, asynchronous: bool = False) -> None:
        self.grpc = library()
        self.channel = open_channel(self.grpc, address, asynchronous=asynchronous)
        self.stub = GRPCInferenceServiceStub(self.channel)

    def close(self, *, within_s: float) -> None:
        """Close a channel that is not asynchronous, or leave it alone where that does not end.

        gRPC waits for all calls that were begun. One in whose beginning Ctrl-C came has nobody who
        would see it end, so that would be for ever.
        """
        closing = threading.Thread(target=self.channel.close, daemon=True)
        try:
            closing.start()
        except RuntimeError:  # no more threads, or the interpreter is ending
            self.channel.close()
        else:
            closing.join(within_s)
