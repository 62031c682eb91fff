"""The commands that talk to a running server: health, generate, stream."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from latentry.clients.cli import EXIT_INTERRUPTED, EXIT_TRY_LATER
from latentry.clients.client import Client
from latentry.clients.console import echo_json, progress_bar
from latentry.clients.ranges import parse_classes, parse_seeds
from latentry.clients.requests import MAX_SAMPLES
from latentry.clients.results import GenerateResult
from latentry.clients.server_options import DEFAULT_SERVER, Server, talks_to_server
from latentry.serving.errors import BadRequest, LatentryError
from latentry.serving.images import format_from_text
from latentry.serving.spec import Role
from latentry.serving.transport import ModelInfo

_DEFAULT_SEEDS = "0-15"

Model = Annotated[str, typer.Argument(help="Name of the model.")]
SeedsOption = Annotated[str | None, typer.Option(help="Seeds and ranges of seeds: 0-63,100.")]
CountOption = Annotated[int | None, typer.Option("--n", help="So many images, seeds at random.")]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", help="Class labels: 7, or 0-9, which are gone through in turn."),
]
PsiOption = Annotated[float | None, typer.Option("--psi", help="truncation_psi; 1 is off.")]
FormatOption = Annotated[str, typer.Option(help="Format of the files: png, jpeg, webp.")]
RetryOption = Annotated[
    float | None, typer.Option(help="Wait so many seconds for a busy or lost server.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@talks_to_server
def generate(
    model: Model,
    seeds: SeedsOption = None,
    n: CountOption = None,
    class_label: ClassOption = None,
    psi: PsiOption = None,
    format: FormatOption = "png",
    out: Annotated[Path | None, typer.Option(help="Folder for one file an image.")] = None,
    grid: Annotated[Path | None, typer.Option(help="PNG file for all images in one.")] = None,
    server: Server = DEFAULT_SERVER,
    retry_for_s: RetryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw images: as one picture, MODEL.png in this folder unless told otherwise, or as files.

    Without --seeds and --n the seeds are 0-15.

    For example:

        latentry generate digits --class 7

        latentry generate digits --seeds 0-99 --class 0-9 --grid hundred.png

        latentry generate faces --n 4 --psi 0.7 --out faces/ --format webp
    """
    file_format = _file_format(format)
    if grid is None and out is None:
        grid = Path(f"{model}.png")
    if grid is not None and grid.suffix.lower() != ".png":
        raise BadRequest(f"--grid {grid} is no PNG file; give a name that ends in .png")
    if seeds is None and n is None:
        seeds = _DEFAULT_SEEDS
    samples = _samples(seeds, n)
    with server.open_client(retry_for_s=retry_for_s) as client:
        result = client.generate(
            model,
            **samples,
            class_label=_class_labels(client, model, class_label, samples),
            truncation_psi=psi,
            format=file_format if out else "raw",
        )
    files = result.save(out) if out else []
    if grid:
        _write_grid(result, grid)
    if as_json:
        echo_json(_json_from_result(result, files, grid))
        return
    typer.echo(_summary(result))
    for line in [f"{len(files)} files in {out}"] * bool(out) + [f"grid: {grid}"] * bool(grid):
        typer.echo(line)


@talks_to_server
def stream(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for one file an image.")],
    seeds: SeedsOption = None,
    n: CountOption = None,
    class_label: ClassOption = None,
    psi: PsiOption = None,
    format: FormatOption = "png",
    chunk_size: Annotated[int | None, typer.Option(help="Images in a chunk.")] = None,
    server: Server = DEFAULT_SERVER,
    retry_for_s: RetryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw many images and write each as it comes; a broken stream goes on by itself.

    Ctrl-C stops it; what has come stays.

    For example:

        latentry stream digits --seeds 0-9999 --class 0-9 --out digits/

        latentry stream faces --n 500 --psi 0.7 --out faces/ --retry-for-s 60
    """
    file_format = _file_format(format)
    samples = _samples(seeds, n)
    total = _count(samples)
    delivered = 0
    with server.open_client(retry_for_s=retry_for_s) as client:
        chunks = client.stream(
            model,
            **samples,
            class_label=_class_labels(client, model, class_label, samples),
            truncation_psi=psi,
            format=file_format,
            chunk_size=chunk_size,
            resume=True,
        )
        try:
            with closing(chunks), progress_bar(model, total, quiet=as_json) as advance:
                for chunk in chunks:
                    chunk.save(out)
                    delivered += len(chunk)
                    advance(len(chunk))
        except KeyboardInterrupt:
            typer.echo(f"stopped: {delivered} of {total} images are in {out}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        info = client.info(model)
    if as_json:
        echo_json({**_json_from_info(info), "delivered": delivered, "out": str(out)})
    else:
        typer.echo(f"{delivered} images of {model} in {out}")


@talks_to_server
def health(server: Server = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Tell whether a server is ready, and what it serves. Exit code 0 ready, 75 not.

    For example:

        latentry health

        latentry health --url render-3:8001 --json
    """
    with server.open_client() as client:
        state = client.health()
        models = [_describe(client, name) for name in state.models]
    if as_json:
        echo_json({"ready": state.ready, "reason": state.reason, "models": models})
    else:
        typer.echo(f"{'ready' if state else 'not ready'}: {state.reason}")
        for model in models:
            typer.echo("  " + ", ".join(f"{key} {text}" for key, text in model.items()))
    if not state:
        raise typer.Exit(EXIT_TRY_LATER)


def _samples(seeds: str | None, n: int | None) -> dict[str, Any]:
    """Return the arguments of ``Client.generate`` that the options for samples mean."""
    if (seeds is None) == (n is None):
        raise BadRequest("give either --seeds, such as --seeds 0-63,100, or --n")
    return {"n": n} if seeds is None else {"seeds": parse_seeds(seeds)}


def _class_labels(
    client: Client, model: str, text: str | None, samples: Mapping[str, Any]
) -> NDArray[np.int64] | None:
    """Return the classes in ``text``, gone through in turn: one for each of ``samples``."""
    if text is None:
        return None
    try:
        return np.resize(parse_classes(text), min(_count(samples), MAX_SAMPLES))
    except BadRequest as error:
        raise BadRequest(f"{error}{_classes_of(client, model)}") from None


def _count(samples: Mapping[str, Any]) -> int:
    return max(samples["n"], 1) if "n" in samples else len(samples["seeds"])


def _classes_of(client: Client, model: str) -> str:
    """Return the end of a message that says which classes ``model`` has, if it can be asked."""
    try:
        item = client.info(model).spec.find(Role.CLASS_LABEL)
    except LatentryError:
        return ""
    return f"; {model} takes {item.allowed if item else 'no class'}"


def _file_format(text: str) -> str:
    if not format_from_text(text).encoded:
        raise BadRequest(f"--format {text} is no file format; use png, jpeg or webp")
    return text


def _write_grid(result: GenerateResult, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result.grid().save(path)


def _summary(result: GenerateResult) -> str:
    if result.seeds is None:
        return str(result)
    shown = ", ".join(map(str, result.seeds[:16].tolist())) + ", ..." * (len(result) > 16)
    return f"{len(result)} images of {result.model} version {result.version}, seeds {shown}"


def _describe(client: Client, model: str) -> dict[str, str]:
    try:
        return _json_from_info(client.info(model))
    except LatentryError as error:
        return {"model": model, "error": str(error)}


def _json_from_info(info: ModelInfo) -> dict[str, str]:
    return {
        "model": info.name,
        "version": info.version,
        "model_digest": info.model_digest,
        "engine_class": info.engine_class,
    }


def _json_from_result(
    result: GenerateResult, files: list[Path], grid: Path | None
) -> dict[str, Any]:
    return {
        **_json_from_info(result.info),
        "seeds": None if result.seeds is None else result.seeds.tolist(),
        "controls": {name: _numbers(values) for name, values in result.controls.items()},
        "files": [str(path) for path in files],
        "grid": str(grid) if grid else None,
    }


def _numbers(values: NDArray[Any]) -> list[Any]:
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return [float(str(v)) if isinstance(v, np.floating) else v.item() for v in values]
