"""``latentry models``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from latentry.cli.common.console import AsJson
from latentry.cli.common.exit_codes import EXIT_FAULT
from latentry.cli.common.repository_options import (
    DEFAULT_REPOSITORY,
    Repository,
    print_json,
)
from latentry.contract.files import parse_json, printable, read_regular

if TYPE_CHECKING:
    from latentry.serving.entries.repository import Entry

_MOST_REPORT_BYTES = 64 * 2**20

models = typer.Typer(help="List, tune or remove the entries of a model repository.")


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context, repository: Repository = DEFAULT_REPOSITORY, as_json: AsJson = False
) -> None:
    """List every model with its versions, inputs, digest, parity and size; verify every file.

    Exit code 1 where something is damaged.

    latentry models --repository model_repository
    """
    from latentry.contract.errors import LatentryError
    from latentry.serving.entries.repository import list_entries, list_strays
    from latentry.serving.entries.verification import verify_entry

    if context.invoked_subcommand is not None:
        return
    entries, errors = list_entries(repository)
    for entry in entries:
        try:
            verify_entry(entry)
        except LatentryError as error:
            errors[entry.folder] = error
    if as_json:
        damaged = {str(folder): str(error) for folder, error in errors.items()}
        print_json({"entries": [_facts(entry) for entry in entries], "damaged": damaged})
    else:
        console = Console(soft_wrap=True, highlight=False)
        for entry in entries:
            console.print(_description(entry))
        for damage in errors.values():
            console.print(Text.assemble(("damaged:", "red"), f" {printable(str(damage))}"))
        for stray in list_strays(repository):
            console.print(Text.assemble(("no entry:", "yellow"), f" {printable(str(stray))}"))
        if not entries:
            line = f"no entries in {repository}; run `latentry export CHECKPOINT` first"
            console.print(Text(line))
    if errors:
        raise typer.Exit(EXIT_FAULT)


@models.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[
        int | None, typer.Option("--version", help="One version; all of them if left out.")
    ] = None,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Remove a model, or one version of it.

    latentry models remove digits --version 1
    """
    from latentry.serving.entries.publishing import remove_entry

    for folder in remove_entry(repository, name, version):
        Console(stderr=True, soft_wrap=True).print(Text(f"removed {folder}"))


@models.command("tune")
def tune_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    report: Annotated[
        Path, typer.Option("--from", help="report.json of `latentry profile NAME --slo ...`.")
    ],
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Serve a model from now on with the configuration that a profile recommends.

    Only the serving part of its manifest changes: the model digest, every image and every running
    job stay the same. A server takes the new values at its next start.

    latentry models tune digits --from profile/report.json
    """
    from latentry.serving.entries.tuning import tune_entry

    changes, model_digest = _recommendation(name, report)
    entry = tune_entry(repository, name, changes, model_digest=model_digest)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    values = ", ".join(f"{key} {value}" for key, value in entry.manifest.serving)
    console.print(Text(f"{name} version {entry.version}: {values}"))
    console.print(f"model digest {entry.manifest.digest[:12]}, as before; restart its server")


def _recommendation(name: str, report: Path) -> tuple[dict[str, int], str]:
    """Return the ``serving`` values that ``report`` recommends and the digest they belong to."""
    from latentry.contract.errors import BadRequest, NotFound

    try:
        content = parse_json(read_regular(report, most=_MOST_REPORT_BYTES))
        model, model_digest = content["model"], content["model_digest"]
        recommended = dict((content["slo"] or {}).get("recommended") or {})
    except OSError as error:
        raise NotFound(f"{report} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{report} is no report of `latentry profile`") from error
    if model != name:
        raise BadRequest(f"{report} is about {model}, not {name}")
    if not recommended:
        raise BadRequest(
            f"{report} recommends nothing: nothing was found that is surely better than the "
            "configuration that it was measured with, or no --slo was given"
        )
    return recommended, model_digest


def _facts(entry: "Entry") -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "version": entry.version,
        "model_digest": manifest.digest,
        "spec": manifest.model.spec.model_dump(mode="json"),
        "parity": manifest.record.parity.model_dump(mode="json"),
        "bytes": sum(record.size for record in manifest.files().values()),
        "serving": manifest.serving.model_dump(),
        "created": manifest.record.created,
    }


def _description(entry: "Entry") -> Text:
    manifest = entry.manifest
    spec = manifest.model.spec
    parity = manifest.record.parity
    size = sum(record.size for record in manifest.files().values())
    worst = max(parity.differences.values())
    lines = {
        **{
            item.name: f"{item.kind} out, {' x '.join(map(str, item.raw.row_shape))}"
            for item in spec.outputs
        },
        **({"seed": "an integer from 0 to 4294967295"} if spec.takes_seed else {}),
        **{
            f"{item.name} in" if spec.find_output(item.name) else item.name: item.allowed
            for item in spec.inputs
        },
        "digest": manifest.digest,
        "parity": f"{worst:.1e}, allowed {parity.tolerance:.0e}",
        "size": f"{size / 2**20:.1f} MiB, exported {manifest.record.created}",
    }
    facts = "".join(f"\n  {key:<15} {' '.join(value.split())}" for key, value in lines.items())
    return Text.assemble((entry.name, "bold"), f" version {entry.version}", printable(facts))
