"""The options that name a server, the same in every command that talks to one.

A command that is decorated with :func:`talks_to_server` takes ``server`` and offers ``--url``,
``--tls``, ``--ca`` and ``--token-file``.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from latentry.cli.common.usage import reading_options
from latentry.clients.client import Client
from latentry.clients.server import Server


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


def open_client(server: Server, *, retry_for_s: float | None = None) -> Client:
    """Return a client of the server that the options name.

    Raises:
        WrongUsage: An option is not allowed, or the token would travel in the clear.
    """
    with reading_options():
        return server.open_client(token_called="--token-file", retry_for_s=retry_for_s)


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
