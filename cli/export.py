"""``latentry export``, ``build`` and ``evaluate``: proved entries, builds, how good they are."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from latentry.cli.common.builds import Bound, bounds_from_texts, nearness
from latentry.cli.common.console import AsJson
from latentry.cli.common.exit_codes import EXIT_FAULT
from latentry.cli.common.repository_options import DEFAULT_REPOSITORY, Repository, print_json
from latentry.cli.common.usage import WrongUsage
from latentry.contract.files import printable

if TYPE_CHECKING:
    from latentry.export.gates.gate import GateFinding
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
    bound: Bound = None,
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
    It is served by default where it is at least 1.2 times as fast, and otherwise by `latentry serve
    --build MODEL=BUILD`.

    latentry build digits --engine openvino --precision int8
    """
    from latentry.export.build import build_model
    from latentry.serving.entries.repository import default_build

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("loading") as status:
        entry = build_model(
            *(repository, name, engine, precision),
            bounds=bounds_from_texts(bound or []),
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


def evaluate(
    name: Annotated[str, typer.Argument(help="The model; of its newest version.")],
    build: Annotated[
        str | None, typer.Option(help="Which build, such as openvino-int8; else the default.")
    ] = None,
    repository: Repository = DEFAULT_REPOSITORY,
    samples: Annotated[
        int | None, typer.Option(help="How many samples to begin with; 4,000 if left out.")
    ] = None,
    first_seed: Annotated[int, typer.Option(help="Seed of the first sample.")] = 0,
    bound: Bound = None,
    examples: Annotated[
        Path | None, typer.Option(help="A folder of pictures that go in, as for `build`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a page with figures and pictures there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how near a build draws to FP32, over any seeds. Exit code 1 where not near enough.

    It changes nothing. The figures and their bounds are those of `latentry build` (docs/builds.md).

    latentry evaluate digits --build openvino-int8 --first-seed 100000 --out quality.html
    """
    from latentry.contract.files import write_atomic
    from latentry.export.evaluation import evaluate_build
    from latentry.export.gates.report import report_bytes

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("loading") as status:
        entry, finding = evaluate_build(
            *(repository, name, build),
            samples=samples,
            first_seed=first_seed,
            bounds=bounds_from_texts(bound or []),
            examples=examples,
            progress=lambda count: status.update(f"{name}: compared {count:,} samples"),
        )
    if out is not None:
        write_atomic(out, report_bytes(name, entry.build.name, finding))
    if as_json:
        print_json(_evaluation(entry, finding, first_seed))
    else:
        _tell(console, entry, finding)
    if finding.faults:
        raise typer.Exit(EXIT_FAULT)


def _evaluation(entry: "Entry", finding: "GateFinding", first_seed: int) -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "model_digest": entry.digest,
        "build": entry.build.name,
        "build_digest": entry.build.digest,
        "first_seed": first_seed,
        "passes": not finding.faults,
        "faults": list(finding.faults),
        **finding.gate.model_dump(mode="json"),
    }


def _tell(console: Console, entry: "Entry", finding: "GateFinding") -> None:
    from latentry.export.gates.bounds import LEAST

    gate = finding.gate
    console.print(
        Text(f"{entry.name} {entry.build.name} beside FP32, over {gate.samples:,} samples:")
    )
    for key, value in gate.found.items():
        word = "at least" if key in LEAST else "at most"
        allowed = f"  ({word} {gate.bounds[key]:g})" if key in gate.bounds else ""
        console.print(f"  {key:<20} {value:>10.4g}{allowed}")
    for fault in finding.faults:
        console.print(Text.assemble(("too far:", "red"), f" {fault}"))
