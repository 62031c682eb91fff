"""What both clients keep, and how they are pickled: by what they were made with."""

import pickle
from collections.abc import Mapping
from os import PathLike
from typing import Any

from latentry.clients.retry import Deadline, Unset, policy_from_retry_for_s
from latentry.contract.errors import BadRequest


class ClientBase:
    """How long a client waits, when it tries again, and what carries its requests.

    It pickles where its transport does; a copy has a connection of its own.
    """

    _transport: Any

    def __init__(self, timeout_s: float | None, retry_for_s: float | None) -> None:
        Deadline(timeout_s)  # checks it
        self._timeout_s = timeout_s
        self._policy = policy_from_retry_for_s(retry_for_s)

    def _deadline(self, timeout_s: float | None | Unset) -> Deadline:
        """Return the deadline of a call with this ``timeout_s``; left out, it is the client's."""
        return Deadline(self._timeout_s if isinstance(timeout_s, Unset) else timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        try:
            transport = pickle.dumps(self._transport)
        except Exception as error:
            raise BadRequest(
                f"this client's transport, a {type(self._transport).__name__}, does not pickle "
                f"({error}); make the client in the process that uses it"
            ) from error
        return {**self.__dict__, "_transport": transport}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _transport=pickle.loads(state["_transport"]))


def check_transport_is_alone(
    url: str | None,
    tls: bool | str | PathLike[str] | tuple[str | None, str, str],
    headers: Mapping[str, str] | None,
) -> None:
    """Check that nothing about a server was given beside a transport; raises BadRequest."""
    if url is not None or tls or headers:
        raise BadRequest("url, tls and headers go with a server, not with transport; give one")
