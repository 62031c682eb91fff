"""Where a server is and how to talk to it, as commands and jobs are told."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentry.clients.client import Client
from latentry.contract.errors import BadRequest
from latentry.contract.files import read_regular

TOKEN_VARIABLE = "LATENTRY_TOKEN"

_MOST_TOKEN_BYTES = 64 * 1024


@dataclass(frozen=True)
class Server:
    """Where a server is and how to talk to it; pickled, it holds no secret.

    Attributes:
        url: HOST:PORT; None is ``LATENTRY_URL`` or 127.0.0.1:8001.
        tls: Whether to use TLS.
        ca: File of root certificates; with it TLS is used.
        token_file: File that holds a token; None takes the environment's ``LATENTRY_TOKEN``.
    """

    url: str | None = None
    tls: bool = False
    ca: Path | None = None
    token_file: Path | None = None

    def open_client(self, *, token_called: str = "token_file", **arguments: Any) -> Client:
        """Return a client of the server.

        Args:
            token_called: What the file of a token is called where it is refused.
            arguments: Further arguments of the client.

        Raises:
            BadRequest: An option is not allowed, or the token would travel in the clear.
        """
        tls = self.ca or self.tls
        token = self._token(token_called)
        headers = {"authorization": f"Bearer {token}"} if token else None
        return Client(self.url, tls=tls, headers=headers, **arguments)

    def _token(self, called: str) -> str:
        if self.token_file is None:
            return _check_token(os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
        try:
            text = read_regular(self.token_file, most=_MOST_TOKEN_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise BadRequest(f"{called} {self.token_file}: {error.strerror}") from error
        token = _check_token(text.removesuffix("\n").removesuffix("\r"), called)
        if not token:
            raise BadRequest(f"{called} {self.token_file} is empty")
        return token


def _check_token(token: str, source: str) -> str:
    if not token.isascii() or not token.isprintable():
        # It may be a secret, so it is not shown.
        raise BadRequest(f"the token of {source} is not one line of printable ASCII")
    return token


DEFAULT_SERVER = Server()
