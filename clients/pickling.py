"""How clients are pickled and copied: by what they were made with, never with a connection."""

import pickle
from typing import Any

from latentry.contract.errors import BadRequest


class PickledByTransport:
    """A client that pickles where its transport does; a copy has a connection of its own."""

    _transport: Any

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
