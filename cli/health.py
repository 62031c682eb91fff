"""``latentry health``."""

import typer

from latentry.cli.common.console import AsJson, echo_json
from latentry.cli.common.exit_codes import EXIT_TRY_LATER
from latentry.cli.common.samples import json_from_info
from latentry.cli.common.server_options import open_client, talks_to_server
from latentry.clients.client import Client
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.contract.errors import LatentryError


@talks_to_server
def health(server: Server = DEFAULT_SERVER, as_json: AsJson = False) -> None:
    """Tell whether a server is ready, and what it serves.

    Exit code 0: ready; 75: not now, it starts, shuts down or does not answer; 1: never, such as a
    wrong protocol or certificate.

    For example:

        latentry health

        latentry health --url render-3:8001 --json
    """
    with open_client(server) as client:
        state = client.health()
        models = [_describe(client, name) for name in state.models]
    if as_json:
        echo_json({"ready": state.ready, "reason": state.reason, "models": models})
    else:
        typer.echo(f"{'ready' if state else 'not ready'}: {state.reason}")
        for model in models:
            typer.echo("  " + ", ".join(f"{key} {text}" for key, text in model.items()))
    if not state:
        raise typer.Exit(state.error.exit_code if state.error else EXIT_TRY_LATER)


def _describe(client: Client, model: str) -> dict[str, str]:
    try:
        return json_from_info(client.info(model))
    except LatentryError as error:
        return {"model": model, "error": str(error)}
