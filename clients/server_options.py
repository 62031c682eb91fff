"""The options that name a server, the same in every command that talks to one.

A command that is decorated with :func:`talks_to_server` takes ``server`` and offers ``--url``,
``--tls``, ``--ca`` and ``--token-file``.
"""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from latentry.clients.client import Client
from latentry.serving.errors import BadRequest
from latentry.serving.files import read_regular

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

    def open_client(self, **arguments: Any) -> Client:
        """Return a client of the server, with these further arguments.

        Raises:
            BadRequest: An option is not allowed, or the token would travel in the clear.
        """
        tls = self.ca or self.tls
        headers = {"authorization": f"Bearer {token}"} if (token := self._token()) else None
        return Client(self.url, tls=tls, headers=headers, **arguments)

    def _token(self) -> str:
        if self.token_file is None:
            return _check_token(os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
        try:
            text = read_regular(self.token_file, most=_MOST_TOKEN_BYTES).decode("ascii", "replace")
        except OSError as error:
            raise BadRequest(f"--token-file {self.token_file}: {error.strerror}") from error
        token = _check_token(text.removesuffix("\n").removesuffix("\r"), "--token-file")
        if not token:
            raise BadRequest(f"--token-file {self.token_file} is empty")
        return token


DEFAULT_SERVER = Server()


def talks_to_server(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options that name a server, in place of its argument ``server``."""
    signature = inspect.signature(command, eval_str=True)
    options = inspect.signature(_server_from_options, eval_str=True).parameters

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in options if name in kwargs}
        command(*args, server=_server_from_options(**given), **kwargs)

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += options.values() if parameter.name == "server" else [parameter]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _server_from_options(
    url: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the server; if left out LATENTRY_URL or 127.0.0.1:8001."),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS, with this machine's root certificates.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option(help="Use TLS, with the root certificates in this file.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token for a proxy; if left out LATENTRY_TOKEN."),
    ] = None,
) -> Server:
    # Workers may run in other folders.
    return Server(url, tls, ca and ca.absolute(), token_file and token_file.absolute())


def _check_token(token: str, source: str) -> str:
    if not token.isascii() or not token.isprintable():
        # It may be a secret, so it is not shown.
        raise BadRequest(f"the token of {source} is not one line of printable ASCII")
    return token
