"""``latentry serve``."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from latentry.cli.common.console import AsJson
from latentry.cli.common.repository_options import (
    DEFAULT_REPOSITORY,
    Repository,
    print_json,
)
from latentry.cli.common.usage import reading_options
from latentry.contract.errors import BadRequest
from latentry.contract.files import printable

if TYPE_CHECKING:
    from latentry.serving.entries.repository import Entry
    from latentry.serving.triton.tritonserver import Endpoint


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
    repository: Repository = DEFAULT_REPOSITORY,
    models: Annotated[
        str, typer.Option(help="Names, such as digits,textures; all if left out.")
    ] = "",
    build: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=BUILD",
            help="Serve this build, such as digits=onnxruntime-fp32; the default one if left out.",
        ),
    ] = None,
    streams: Annotated[
        str, typer.Option(help="Models that are streamed, too: all, none, or names such as a,b.")
    ] = "all",
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
    from latentry.serving.server.life import Limits
    from latentry.serving.server.memory import parse_size
    from latentry.serving.server.serve import ServeOptions
    from latentry.serving.server.serve import serve as run

    console = Console(stderr=True, soft_wrap=True)
    _log_to(console)
    with reading_options():
        builds = _builds(build or [])
        memory = None if most_memory is None else parse_size(most_memory)
    options = ServeOptions(
        repository=repository,
        models=tuple(name for name in models.split(",") if name),
        builds=builds,
        streams=_streams(streams),
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
        most_memory=memory,
        expose_old_server=expose_old_server,
    )

    if console.is_terminal:
        console.print(f"starting Triton with {repository}: every model is verified and tried first")

    def say_ready(endpoint: "Endpoint", entries: "list[Entry]") -> None:
        if as_json:
            print_json(
                {
                    "ready": True,
                    "url": endpoint.url,
                    "metrics_url": f"http://127.0.0.1:{endpoint.metrics_port}/metrics",
                    "models": {entry.name: str(entry.version) for entry in entries},
                    "builds": {entry.name: entry.build.name for entry in entries},
                },
                one_line=True,
            )
            return
        names = ", ".join(
            f"{entry.name} (version {entry.version}, {entry.build.name})" for entry in entries
        )
        console.print(f"[green]ready[/] on {endpoint.url}: {names}")
        console.print(f"metrics: http://127.0.0.1:{endpoint.metrics_port}/metrics")
        url = "" if endpoint.url == "127.0.0.1:8001" else f" --url {endpoint.url}"
        console.print(Text(f"try: {example_command(entries[0])}{url}"))
        console.print("Ctrl-C stops it")

    run(options, say_ready)


def example_command(entry: "Entry") -> str:
    """Return a command that draws from a model; what only its user has is in capitals."""
    from latentry.contract.kinds.classes import ClassInput
    from latentry.contract.kinds.numbers import IntegerInput, NumberInput
    from latentry.contract.kinds.picture import PixelsInput

    spec = entry.spec
    words = ["latentry generate", entry.name, *(["--seeds 0-15"] if spec.takes_seed else [])]
    for item in spec.route(frozenset()).inputs:
        if item.default_row() is not None or item.distribution_to_draw:
            continue
        if isinstance(item, ClassInput):
            words.append("--class 0" if item is spec.class_input else f"--set {item.name}=0")
        elif isinstance(item, NumberInput | IntegerInput):
            words.append(f"--set {item.name}={item.text(item.examples(1)[0])}")
        else:
            value = "PICTURE.png" if isinstance(item, PixelsInput) else "VALUE"
            words.append(f"--set {item.name}={value}")
    words.append(f"--grid {entry.name}.png" if spec.picture else f"--out {entry.name}")
    return " ".join(words)


def _builds(texts: list[str]) -> dict[str, str]:
    """Return the builds that are asked for, by model; raises BadRequest."""
    builds: dict[str, str] = {}
    for text in texts:
        model, sign, build = text.partition("=")
        if not (model and sign and build) or model in builds:
            raise BadRequest(
                f"--build {text} is not understood; say MODEL=BUILD once for a model, such as "
                "digits=onnxruntime-fp32 (`latentry models` lists the builds)"
            )
        builds[model] = build
    return builds


def _streams(text: str) -> tuple[str, ...] | None:
    if text == "all":
        return None
    return () if text == "none" else tuple(name for name in text.split(",") if name)


def _log_to(console: Console) -> None:
    """Show what happens to a server: for people on a terminal, one line each in a file."""
    handler: logging.Handler = RichHandler(console=console, show_path=False)
    handler.setFormatter(_Printable("%(message)s"))
    if not console.is_terminal:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("latentry").setLevel(logging.INFO)
