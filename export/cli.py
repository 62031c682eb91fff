"""``latentry export``."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from latentry.serving.errors import BadRequest


def export(
    source: Annotated[
        str, typer.Argument(help="A checkpoint folder, or your own package.module:build.")
    ],
    repository: Annotated[
        Path, typer.Option(help="The model repository; made where it does not exist.")
    ] = Path("model_repository"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights of package.module:build (safetensors).")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Spec of package.module:build (JSON).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name; the checkpoint's or module's own if left out.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, max=1024, help="Largest batch that will be served.")
    ] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")] = False,
) -> None:
    """Export a generator to ONNX, prove it against PyTorch and publish it.

    What fails a proof is refused and leaves nothing behind. Publishing what is already the newest
    version writes nothing.

    latentry export training/checkpoints/digits --repository model_repository

    latentry export my_package.my_module:build --weights w.safetensors --spec spec.json
    """
    from latentry.export.publish import (
        export_generator,
        source_from_checkpoint,
        source_from_target,
    )

    console = Console(stderr=True)
    if ":" in source and not Path(source).exists():
        if weights is None or spec is None:
            raise BadRequest(f"{source} needs --weights W.safetensors and --spec SPEC.json")
        generator = source_from_target(source, weights, spec, name)
    else:
        if weights is not None or spec is not None:
            raise BadRequest("--weights and --spec go with package.module:build, not a checkpoint")
        generator = source_from_checkpoint(Path(source), name)
    with console.status("starting") as status:
        entry, is_new = export_generator(
            generator,
            repository,
            max_batch_size=max_batch,
            on_step=lambda step: status.update(f"{generator.name}: {step}"),
        )
    record = entry.manifest.record
    for warning in record.parity["warnings"]:
        console.print(f"[yellow]warning:[/] {warning}")
    if as_json:
        answer = {
            "name": entry.name,
            "version": entry.version,
            "new": is_new,
            "folder": str(entry.folder),
            "model_digest": entry.manifest.digest,
            "parity": record.parity,
        }
        Console().print_json(json.dumps(answer))
        return
    if not is_new:
        console.print(
            f"{entry.name} version {entry.version} is this very model "
            f"({entry.manifest.digest[:12]}); nothing was written"
        )
        return
    worst, allowed = max(record.parity["differences"].values()), record.parity["tolerance"]
    console.print(f"[green]published[/] {entry.name} version {entry.version} in {entry.folder}")
    console.print(
        f"  largest difference from PyTorch {worst:.1e} (allowed {allowed:.0e}), "
        f"digest {entry.manifest.digest[:12]}"
    )
    console.print(f"next: latentry serve --repository {repository}")
