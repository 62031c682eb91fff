"""``latentry build``."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from latentry.cli.common.console import AsJson
from latentry.cli.common.repository_options import DEFAULT_REPOSITORY, Repository, print_json


def build(
    name: Annotated[str, typer.Argument(help="The model; its newest version gets the build.")],
    engine: Annotated[str, typer.Option(help="What is to run it, such as onnxruntime.")],
    precision: Annotated[str, typer.Option(help="In what numbers.")] = "fp32",
    repository: Repository = DEFAULT_REPOSITORY,
    no_default: Annotated[
        bool,
        typer.Option("--no-default", help="Serve it only where it is asked for, however fast."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a build of a model that is run by another engine, and prove it against the FP32 build.

    What draws something else is refused and leaves nothing behind. The build is served by default
    where it is at least 1.2 times as fast, and otherwise by `latentry serve --build MODEL=BUILD`.

    latentry build digits --engine my_engine --precision fp32
    """
    from latentry.export.build import build_model
    from latentry.serving.entries.repository import default_build

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("loading") as status:
        entry = build_model(
            *(repository, name, engine, precision),
            may_be_default=not no_default,
            on_step=lambda step: status.update(f"{name}: {step}"),
        )
    built, is_default = entry.build, default_build(entry.folder) == entry.build.name
    if as_json:
        print_json(
            {
                "name": entry.name,
                "version": entry.version,
                "model_digest": entry.digest,
                "build": built.name,
                "build_digest": built.digest,
                "default": is_default,
                "speed": built.speed,
                "rows": built.rows,
                "parity": built.parity.model_dump(mode="json"),
                "folder": str(entry.build_folder),
            }
        )
        return
    worst = max(built.parity.differences.values())
    console.print(Text(f"added {built.name} to {name} version {entry.version}"))
    console.print(
        f"  largest difference from FP32 {worst:.1e} (allowed {built.parity.tolerance:.0e}), "
        f"{built.speed:.2f} x its speed, digest {built.digest[:12]}"
    )
    if is_default:
        console.print("  it is the default from now on; restart the server")
    else:
        console.print(Text(f"next: latentry serve --build {name}={built.name}"))
