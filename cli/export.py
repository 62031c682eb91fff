"""``latentry export`` and ``latentry build``: what adds proved entries, and builds to them."""

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from latentry.cli.common.console import AsJson
from latentry.cli.common.repository_options import DEFAULT_REPOSITORY, Repository, print_json
from latentry.cli.common.usage import WrongUsage
from latentry.contract.files import printable

if TYPE_CHECKING:
    from latentry.export.publish import Source
    from latentry.serving.entries.repository import Entry


def export(
    source: Annotated[
        str, typer.Argument(help="A checkpoint folder, or your own package.module:build.")
    ],
    repository: Annotated[
        Path, typer.Option(help="The model repository; made where it does not exist.")
    ] = DEFAULT_REPOSITORY,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of package.module:build (safetensors).")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="Spec of package.module:build (JSON).")] = None,
    name: Annotated[
        str | None, typer.Option(help="Model name; the checkpoint's or module's own if left out.")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Largest batch that will be served; if left out 32, or what 32 MiB of inputs and "
            "outputs allow.",
        ),
    ] = None,
    noise: Annotated[
        Literal["freeze", "seed"] | None,
        typer.Option(
            help="What becomes of noise that the forward draws. freeze: it is drawn once and kept; "
            "seed: it follows from the seed, as further latents."
        ),
    ] = None,
    rows: Annotated[
        Literal["single"] | None,
        typer.Option(
            help="single: compute each row alone also where rows of a batch differ by more "
            "than rounding."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a generator to ONNX, prove it against PyTorch and publish it.

    What fails a proof is refused and leaves nothing behind. Publishing what is already the newest
    version writes nothing.

    latentry export training/checkpoints/digits --repository model_repository

    latentry export my_package.my_module:build --weights w.safetensors --spec spec.json
    """
    console = Console(stderr=True, soft_wrap=True)
    # What the generator's own code prints must not get into the JSON.
    with contextlib.redirect_stdout(sys.stderr):
        entry, is_new = _publish(
            (source, weights, spec, name),
            console,
            repository,
            max_batch_size=max_batch,
            noise=noise,
            single_rows=rows == "single",
        )
    from latentry.cli.common.builds import nearness

    for warning in entry.build.parity.warnings:
        console.print(Text.assemble(("warning:", "yellow"), f" {printable(warning)}"))
    if as_json:
        print_json(_facts(entry, is_new))
    elif is_new:
        console.print(f"[green]published[/] {entry.name} version {entry.version} in {entry.folder}")
        console.print(
            f"  largest difference from PyTorch {nearness(entry.build)}, digest {entry.digest[:12]}"
        )
        console.print(f"next: latentry serve --repository {repository}")
    else:
        console.print(
            f"{entry.name} version {entry.version} is this very model "
            f"({entry.digest[:12]}); nothing was written"
        )


def _publish(
    asked: tuple[str, Path | None, Path | None, str | None],
    console: Console,
    repository: Path,
    **how: Any,
) -> "tuple[Entry, bool]":
    from latentry.export.publish import export_generator

    with console.status("loading") as status:
        generator = _source(*asked)

        def tell(step: str) -> None:
            status.update(f"{generator.name}: {step}")

        return export_generator(generator, repository, on_step=tell, **how)


def _source(source: str, weights: Path | None, spec: Path | None, name: str | None) -> "Source":
    from latentry.export.publish import source_from_checkpoint, source_from_target

    if ":" in source and not Path(source).exists():
        if weights is None or spec is None:
            raise WrongUsage(f"{source} needs --weights W.safetensors and --spec SPEC.json")
        return source_from_target(source, weights, spec, name)
    if weights is None and spec is None:
        return source_from_checkpoint(Path(source), name)
    raise WrongUsage(
        f"--weights and --spec go with a function, package.module:build; {source} has no "
        "colon, so it would be a checkpoint folder"
    )


def _facts(entry: "Entry", is_new: bool) -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "new": is_new,
        "folder": str(entry.folder),
        "model_digest": entry.digest,
        "build": entry.build.name,
        "build_digest": entry.build.digest,
        "parity": entry.build.parity.model_dump(mode="json"),
    }


def build(
    name: Annotated[str, typer.Argument(help="The model; its newest version gets the build.")],
    engine: Annotated[str, typer.Option(help="What is to run it: onnxruntime, openvino, ...")],
    precision: Annotated[str, typer.Option(help="In what numbers: fp32, bf16, int8.")] = "fp32",
    repository: Repository = DEFAULT_REPOSITORY,
    bound: Annotated[
        list[str] | None,
        typer.Option(
            help="Another bound for how far samples may be from FP32's, such as worst_psnr_db=20; "
            "again for more.",
            metavar="NAME=NUMBER",
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures that go in, to calibrate and to judge by; of a model that "
            "takes several, one folder in it by the name of each.",
        ),
    ] = None,
    no_default: Annotated[
        bool,
        typer.Option("--no-default", help="Serve it only where it is asked for, however fast."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a build of a model: by another engine, in other numbers. It is proved against FP32.

    What draws something else is refused and leaves nothing behind. In fewer bits (bf16, int8) 4,000
    samples and more are compared with FP32's, and a page with pictures is kept beside the build.
    The build is served by default
    where it is at least 1.2 times as fast, and otherwise by `latentry serve --build MODEL=BUILD`.

    latentry build digits --engine openvino --precision int8
    """
    from latentry.cli.common.builds import nearness
    from latentry.export.build import build_model
    from latentry.serving.entries.repository import default_build

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("loading") as status:
        entry = build_model(
            *(repository, name, engine, precision),
            bounds=_bounds(bound or []),
            examples=examples,
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
                "gate": built.gate.model_dump(mode="json") if built.gate else None,
                "folder": str(entry.build_folder),
            }
        )
        return
    console.print(Text(f"added {built.name} to {name} version {entry.version}"))
    console.print(
        f"  difference from FP32: {nearness(built)}, "
        f"{built.speed:.2f} x its speed, digest {built.digest[:12]}"
    )
    if is_default:
        console.print("  it is the default from now on; restart the server")
    else:
        console.print(Text(f"next: latentry serve --build {name}={built.name}"))


def _bounds(texts: Sequence[str]) -> dict[str, float]:
    """Return the bounds that NAME=NUMBER give; raises WrongUsage."""
    bounds: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            bounds[name.strip()] = float(number)
        except ValueError:
            raise WrongUsage(
                f"--bound is {text!r}; it takes NAME=NUMBER, such as worst_psnr_db=20"
            ) from None
        if not math.isfinite(bounds[name.strip()]):
            raise WrongUsage(f"--bound is {text!r}; it takes a finite number")
    return bounds
