"""``latentry serve``, ``latentry models`` and ``latentry doctor``."""

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from latentry.serving.files import parse_json, printable, read_regular

if TYPE_CHECKING:
    from latentry.serving.doctor import Finding
    from latentry.serving.repository import Entry
    from latentry.serving.tritonserver import Endpoint

_REPOSITORY = Path("model_repository")
_MOST_REPORT_BYTES = 64 * 2**20

Repository = Annotated[Path, typer.Option(help="The model repository.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for scripts.")]


class LogLevel(StrEnum):
    """How much Triton logs."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class _Printable(logging.Formatter):
    """Escapes what a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def serve(
    repository: Repository = _REPOSITORY,
    models: Annotated[
        str, typer.Option(help="Names, such as digits,textures; all if left out.")
    ] = "",
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")
    ] = 8001,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Metrics port on loopback; 0 takes a free one.")
    ] = 8002,
    instances: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of each model; the entry's own if left out."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=0, help="Engine threads of each; 0 means one for each core.")
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Largest batch, up to what the export proved."),
    ] = None,
    queue_delay_us: Annotated[
        int | None,
        typer.Option(min=0, help="Microseconds that a batch waits for more requests."),
    ] = None,
    max_queue_size: Annotated[
        int | None,
        typer.Option(
            min=0, help="Requests that may wait, others are refused as busy; 0 for any number."
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="How much Triton logs.")] = LogLevel.WARNING,
    log_file: Annotated[Path | None, typer.Option(help="Triton's output, appended.")] = None,
    drain_s: Annotated[
        float,
        typer.Option(min=0, max=86_400, help="Seconds that running requests get when stopping."),
    ] = 10.0,
    most_memory: Annotated[
        str | None,
        typer.Option(
            help="Such as 4GiB: above it the server is drained and started again; if left out, "
            "2 GiB more than it takes when it is ready."
        ),
    ] = None,
    expose_old_server: Annotated[
        bool,
        typer.Option(
            "--expose-old-server",
            help="Let the wheel's Triton 2.51, which has known holes, listen beyond loopback.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve the newest version of every model in the repository until Ctrl-C.

    Every file is verified first, and the server must draw the goldens of every entry before it
    counts as ready. When Triton or a model's process dies, it is started again.

    latentry serve --repository model_repository --models digits --port 8001
    """
    from latentry.serving.memory import parse_size
    from latentry.serving.server import ServeOptions
    from latentry.serving.server import serve as run
    from latentry.serving.server_life import Limits

    console = Console(stderr=True, soft_wrap=True)
    _log_to(console)
    options = ServeOptions(
        repository=repository,
        models=tuple(name for name in models.split(",") if name),
        address=address,
        port=port,
        metrics_port=metrics_port,
        instances=instances,
        threads=threads,
        max_batch_size=max_batch_size,
        max_queue_delay_microseconds=queue_delay_us,
        max_queue_size=max_queue_size,
        log_level=log_level.value,
        log_file=log_file,
        limits=Limits(drain_s=drain_s),
        most_memory=None if most_memory is None else parse_size(most_memory),
        expose_old_server=expose_old_server,
    )

    def say_ready(endpoint: "Endpoint", entries: "list[Entry]") -> None:
        if as_json:
            _print_json(
                {
                    "ready": True,
                    "url": endpoint.url,
                    "metrics_url": f"http://127.0.0.1:{endpoint.metrics_port}/metrics",
                    "models": {entry.name: str(entry.version) for entry in entries},
                },
                one_line=True,
            )
            return
        names = ", ".join(f"{entry.name} (version {entry.version})" for entry in entries)
        console.print(f"[green]ready[/] on {endpoint.url}: {names}")
        console.print(f"metrics: http://127.0.0.1:{endpoint.metrics_port}/metrics")
        first = entries[0]
        label = " --class 0" if first.manifest.model.spec.classes else ""
        url = "" if endpoint.url == "127.0.0.1:8001" else f" --url {endpoint.url}"
        console.print(
            f"try: latentry generate {first.name} --seeds 0-15{label} --grid {first.name}.png{url}"
        )
        console.print("Ctrl-C stops it")

    run(options, say_ready)


def _log_to(console: Console) -> None:
    """Show what happens to a server: for people on a terminal, one line each in a file."""
    handler: logging.Handler = RichHandler(console=console, show_path=False)
    handler.setFormatter(_Printable("%(message)s"))
    if not console.is_terminal:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("latentry").setLevel(logging.INFO)


models = typer.Typer(help="List, tune or remove the entries of a model repository.")


@models.callback(invoke_without_command=True)
def list_models(
    context: typer.Context, repository: Repository = _REPOSITORY, as_json: AsJson = False
) -> None:
    """List every model with its versions, inputs, digest, parity and size; verify every file.

    Exit code 1 where something is damaged.

    latentry models --repository model_repository
    """
    from latentry.serving.errors import LatentryError
    from latentry.serving.repository import list_entries, list_strays, verify_entry

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
        _print_json({"entries": [_facts(entry) for entry in entries], "damaged": damaged})
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
        raise typer.Exit(1)


@models.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[
        int | None, typer.Option("--version", help="One version; all of them if left out.")
    ] = None,
    repository: Repository = _REPOSITORY,
) -> None:
    """Remove a model, or one version of it.

    latentry models remove digits --version 1
    """
    from latentry.serving.repository import remove_entry

    for folder in remove_entry(repository, name, version):
        Console(stderr=True, soft_wrap=True).print(Text(f"removed {folder}"))


@models.command("tune")
def tune_model(
    name: Annotated[str, typer.Argument(help="The model.")],
    report: Annotated[
        Path, typer.Option("--from", help="report.json of `latentry profile NAME --slo ...`.")
    ],
    repository: Repository = _REPOSITORY,
) -> None:
    """Serve a model from now on with the configuration that a profile recommends.

    Only the serving part of its manifest changes: the model digest, every image and every running
    job stay the same. A server takes the new values at its next start.

    latentry models tune digits --from profile/report.json
    """
    from latentry.serving.repository import tune_entry

    changes, model_digest = _recommendation(name, report)
    entry = tune_entry(repository, name, changes, model_digest=model_digest)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    values = ", ".join(f"{key} {value}" for key, value in entry.manifest.serving)
    console.print(Text(f"{name} version {entry.version}: {values}"))
    console.print(f"model digest {entry.manifest.digest[:12]}, as before; restart its server")


def _recommendation(name: str, report: Path) -> tuple[dict[str, int], str]:
    """Return the ``serving`` values that ``report`` recommends and the digest they belong to."""
    from latentry.serving.errors import BadRequest, NotFound

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


def doctor(
    install: Annotated[
        Literal["perf-analyzer"] | None,
        typer.Option(help="Fetch this into the user's cache: perf-analyzer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine and say what is missing for serving, and what to do.

    latentry doctor

    latentry doctor --install perf-analyzer
    """
    from latentry.serving.doctor import examine

    if install:
        _install_perf_analyzer()
        return
    findings = examine()
    if as_json:
        _print_json([finding.__dict__ for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.status == "error" for finding in findings):
        raise typer.Exit(1)


def _print_findings(findings: "list[Finding]") -> None:
    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    names = max(len(finding.name) for finding in findings)
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        status = (f"{finding.status:<8}", colours[finding.status])
        console.print(Text.assemble(status, f"{finding.name:<{names}}  {finding.found}"))
        if finding.advice:
            console.print(Text(" " * (names + 10) + finding.advice, style="dim"))


def _install_perf_analyzer() -> None:
    from latentry.serving.perf_analyzer import fetch_perf_analyzer, find_perf_analyzer

    found = find_perf_analyzer() or fetch_perf_analyzer()
    line = Text(f"perf_analyzer {found.version()}: {found.program}")
    Console(stderr=True, soft_wrap=True).print(line)


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
        "image": " x ".join(map(str, spec.image.row_shape)),
        "seed": "an integer from 0 to 4294967295",
        **{str(item.role): item.allowed for item in spec.inputs},
        "digest": manifest.digest,
        "parity": f"{worst:.1e}, allowed {parity.tolerance:.0e}",
        "size": f"{size / 2**20:.1f} MiB, exported {manifest.record.created}",
    }
    facts = "".join(f"\n  {key:<15} {' '.join(value.split())}" for key, value in lines.items())
    return Text.assemble((entry.name, "bold"), f" version {entry.version}", printable(facts))


def _print_json(value: object, *, one_line: bool = False) -> None:
    # All in ASCII: a terminal obeys none of what names and texts may hold.
    text = json.dumps(value)
    Console(soft_wrap=True).print_json(text, indent=None if one_line else 2, ensure_ascii=True)
