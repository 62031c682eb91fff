"""Ask tritonserver itself whether it is there, without ever waiting for it."""

from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

# A server on this machine is never asked through a proxy of the environment's.
DIRECT = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.initial_reconnect_backoff_ms", 100),
]

_ANSWER_S = 2.0
_AGAIN_S = 0.1
_MOST_MISSED = 3


class ReadinessProbe:
    """Asks ServerReady every two seconds; an answer that does not come in two more is missed.

    Nothing is cancelled and nothing carries a deadline: Triton 2.51 does not bear many of those.

    Attributes:
        ready: Whether it ever said that it and all its models are ready.
    """

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        """Connect to ``HOST:PORT``; ``clock`` tells seconds."""
        self.ready = False
        self._channel = grpc.insecure_channel(url, options=DIRECT)
        self._server_ready = GRPCInferenceServiceStub(self._channel).ServerReady
        self._clock = clock
        self._asked_s = clock() - _ANSWER_S
        self._call: Any = None
        self._missed = 0

    def step(self) -> bool:
        """Take an answer, ask where it is time; return whether the server counts as hung."""
        now_s = self._clock()
        if self._call is not None and self._call.done():
            self._take(self._call)
            self._call = None
        if now_s - self._asked_s >= (_ANSWER_S if self.ready or self._call else _AGAIN_S):
            self._missed += self._call is not None
            self._call = self._server_ready.future(service_pb2.ServerReadyRequest())
            self._asked_s = now_s
        return self._missed >= _MOST_MISSED

    def close(self) -> None:
        """Give up the connection."""
        self._channel.close()

    def _take(self, call: Any) -> None:
        if call.exception() is not None:
            self._missed += 1
            return
        self._missed = 0
        self.ready = self.ready or bool(call.result().ready)
