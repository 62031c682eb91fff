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
from latentry.cli.common.usage import WrongUsage
from latentry.contract.files import parse_json, printable, read_regular

if TYPE_CHECKING:
    from latentry.contract.errors import LatentryError
    from latentry.serving.entries.repository import Entry

_MOST_REPORT_BYTES = 64 * 2**20

models = typer.Typer(help="List, tune or remove the entries of a model repository.")


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context, repository: Repository = DEFAULT_REPOSITORY, as_json: AsJson = False
) -> None:
    """List every model with its versions, inputs, digest, builds and size; verify every file.

    Exit code 1 where something is damaged.

    latentry models --repository model_repository
    """
    from latentry.serving.entries.repository import list_entries, list_strays

    if context.invoked_subcommand is not None:
        return
    entries, errors = list_entries(repository)
    builds = {entry.folder: _sound_builds(entry, errors) for entry in entries}
    if as_json:
        damaged = {str(folder): str(error) for folder, error in errors.items()}
        facts = [_facts(entry, builds[entry.folder]) for entry in entries]
        print_json({"entries": facts, "damaged": damaged})
    else:
        console = Console(soft_wrap=True, highlight=False)
        for entry in entries:
            console.print(_description(entry, builds[entry.folder]))
        for damage in errors.values():
            console.print(Text.assemble(("damaged:", "red"), f" {printable(str(damage))}"))
        for stray in list_strays(repository):
            console.print(Text.assemble(("no entry:", "yellow"), f" {printable(str(stray))}"))
        if not entries:
            line = f"no entries in {repository}; run `latentry export CHECKPOINT` first"
            console.print(Text(line))
    if errors:
        raise typer.Exit(EXIT_FAULT)


def _sound_builds(entry: "Entry", errors: "dict[Path, LatentryError]") -> "list[Entry]":
    """Return ``entry`` with each of its builds; what is damaged goes into ``errors``, too."""
    from latentry.contract.errors import LatentryError
    from latentry.serving.entries.builds import list_builds
    from latentry.serving.entries.verification import verify_build, verify_version

    builds, unsound = list_builds(entry)
    errors |= unsound
    checks = [(entry.folder, verify_version, entry)]
    checks += [(one.build_folder, verify_build, one) for one in builds]
    for folder, verify, one in checks:
        try:
            verify(one)
        except LatentryError as error:
            errors[folder] = error
    return builds


@models.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[
        int | None, typer.Option("--version", help="One version; all of them if left out.")
    ] = None,
    build: Annotated[
        str | None, typer.Option("--build", help="One build of the newest version.")
    ] = None,
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Remove a model, one version of it, or one build of its newest version.

    latentry models remove digits --version 1
    """
    from latentry.serving.entries.builds import remove_build
    from latentry.serving.entries.manifests import FP32
    from latentry.serving.entries.publishing import remove_entry
    from latentry.serving.entries.repository import newest_entries

    if build is not None and version is not None:
        raise WrongUsage("--build is of the newest version; leave --version out")
    if build is not None:
        (entry,) = newest_entries(repository, (name,), {name: FP32})
        folders = [remove_build(repository, entry, build)]
    else:
        folders = remove_entry(repository, name, version)
    for folder in folders:
        Console(stderr=True, soft_wrap=True).print(Text(f"removed {folder}"))


@models.command("default")
def choose_default(
    name: Annotated[str, typer.Argument(help="The model.")],
    build: Annotated[str, typer.Argument(help="One of its builds, such as onnxruntime-fp32.")],
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Serve a build of a model's newest version from now on, where no other is asked for.

    Running servers and jobs stay with the build that they began with.

    latentry models default digits onnxruntime-fp32
    """
    from latentry.serving.entries.builds import set_default_build
    from latentry.serving.entries.manifests import FP32
    from latentry.serving.entries.repository import newest_entries

    (entry,) = newest_entries(repository, (name,), {name: FP32})
    chosen = set_default_build(repository, entry, build)
    text = f"{name} version {entry.version}: {chosen.build.name} is the default; restart its server"
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(text))


@models.command("tune")
def tune_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    report: Annotated[
        Path, typer.Option("--from", help="report.json of `latentry profile NAME --slo ...`.")
    ],
    repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Serve a model from now on with the configuration that a profile recommends.

    Only the serving part of the build that was measured changes: every digest, every image and
    every running job stay the same. A server takes the new values at its next start.

    latentry models tune digits --from profile/report.json
    """
    from latentry.serving.entries.tuning import tune_entry

    changes, build_digest = _recommendation(name, report)
    entry = tune_entry(repository, name, changes, build_digest=build_digest)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    values = ", ".join(f"{key} {value}" for key, value in entry.build.serving)
    console.print(Text(f"{name} version {entry.version}, {entry.build.name}: {values}"))
    console.print(f"build digest {entry.build.digest[:12]}, as before; restart its server")


def _recommendation(name: str, report: Path) -> tuple[dict[str, int], str]:
    """Return the ``serving`` values that ``report`` recommends and the digest they belong to."""
    from latentry.contract.errors import BadRequest, NotFound

    try:
        content = parse_json(read_regular(report, most=_MOST_REPORT_BYTES))
        model, build_digest = content["model"], content["build_digest"]
        if not isinstance(build_digest, str):
            raise ValueError("build_digest is no text")
        recommended = dict((content["slo"] or {}).get("recommended") or {})
    except OSError as error:
        raise NotFound(f"{report} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(
            f"{report} is no report of this version's `latentry profile`; profile again"
        ) from error
    if model != name:
        raise BadRequest(f"{report} is about {model}, not {name}")
    if not recommended:
        raise BadRequest(
            f"{report} recommends nothing: nothing was found that is surely better than the "
            "configuration that it was measured with, or no --slo was given"
        )
    return recommended, build_digest


def _facts(entry: "Entry", builds: "list[Entry]") -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "model_digest": entry.digest,
        "spec": entry.spec.model_dump(mode="json"),
        "default_build": entry.build.name,
        "builds": [_build_facts(one) for one in builds],
        "created": entry.record.created,
    }


def _build_facts(entry: "Entry") -> dict[str, Any]:
    build = entry.build
    return {
        "name": build.name,
        "build_digest": build.digest,
        "rows": build.rows,
        "speed": build.speed,
        "parity": build.parity.model_dump(mode="json"),
        "gate": build.gate.model_dump(mode="json") if build.gate else None,
        "bytes": build.size,
        "serving": build.serving.model_dump(),
        "created": build.created,
    }


def _description(entry: "Entry", builds: "list[Entry]") -> Text:
    from latentry.contract.kinds.kind import sized

    spec = entry.spec
    lines = {
        **{item.name: f"{item.kind} out, {sized(item.raw.row_shape)}" for item in spec.outputs},
        **({"seed": "an integer from 0 to 4294967295"} if spec.takes_seed else {}),
        **{
            f"{item.name} in" if spec.find_output(item.name) else item.name: item.allowed
            for item in spec.inputs
        },
        "digest": entry.digest,
        **{
            f"build {one.build.name}": _build_line(one, is_default=one.build == entry.build)
            for one in builds
        },
        "exported": entry.record.created,
    }
    facts = "".join(f"\n  {key:<15} {' '.join(value.split())}" for key, value in lines.items())
    return Text.assemble((entry.name, "bold"), f" version {entry.version}", printable(facts))


def _build_line(entry: "Entry", *, is_default: bool) -> str:
    from latentry.cli.common.builds import nearness

    build = entry.build
    return (
        f"{'default, ' * is_default}parity {nearness(build)}, "
        f"{build.speed:.2f} x the speed, {build.size / 2**20:.1f} MiB"
    )
