"""``latentry generate``."""

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from latentry.cli.common.console import AsJson, echo_json, waiting
from latentry.cli.common.samples import (
    ClassOption,
    CountOption,
    FormatOption,
    ImageOption,
    Model,
    PsiOption,
    ResizeOption,
    RetryOption,
    SampleOptions,
    SeedsOption,
    SetOption,
    count_samples,
    file_format_from_text,
    json_from_info,
)
from latentry.cli.common.server_options import open_client, talks_to_server
from latentry.cli.common.usage import WrongUsage, check_folder, naming_options
from latentry.clients.results import GenerateResult
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.contract.files import write_atomic

_DEFAULT_SEEDS = "0-15"


@talks_to_server
def generate(
    model: Model,
    seeds: SeedsOption = None,
    n: CountOption = None,
    settings: SetOption = None,
    class_label: ClassOption = None,
    psi: PsiOption = None,
    image: ImageOption = None,
    resize: ResizeOption = False,
    format: FormatOption = "png",
    out: Annotated[Path | None, typer.Option(help="Folder for one file a sample.")] = None,
    grid: Annotated[Path | None, typer.Option(help="PNG file for all pictures in one.")] = None,
    server: Server = DEFAULT_SERVER,
    retry_for_s: RetryOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples: as one picture, MODEL.png in this folder unless told otherwise, or as files.

    Without --seeds and --n the seeds are 0-15, where the model takes any. A model without pictures
    writes into the folder MODEL unless told otherwise.

    For example:

        latentry generate digits --class 7

        latentry generate digits --seeds 0-99 --class 0-9 --grid hundred.png

        latentry generate faces --n 4 --psi 0.7 --out faces/ --format webp

        latentry generate sketches --image photo.jpg --set strength=0.2,0.8
    """
    file_format = file_format_from_text(format)
    if grid is not None and grid.suffix.lower() != ".png":
        raise WrongUsage(f"--grid {grid} is no PNG file; give a name that ends in .png")
    check_folder("--out", out)
    check_folder("--grid", grid.parent if grid else None)
    options = SampleOptions(seeds, n, settings or (), class_label, psi, image or (), resize)
    with open_client(server, retry_for_s=retry_for_s) as client, naming_options():
        spec = client.info(model).spec
        arguments = options.arguments(spec, default_seeds=_DEFAULT_SEEDS)
        if grid is not None:
            _ = spec.image  # says that there is none before anything is drawn
        if grid is None and out is None:
            grid, out = (Path(f"{model}.png"), None) if spec.picture else (None, Path(model))
        with waiting(
            f"drawing {count_samples(spec, arguments):,} samples of {model}", quiet=as_json
        ):
            result = client.generate(model, **arguments, format=file_format if out else "raw")
    files = result.save(out) if out else []
    if grid:
        _write_grid(result, grid)
    if as_json:
        echo_json(_json_from_result(result, files, grid))
        return
    typer.echo(_told(result, files, out, grid))


def _write_grid(result: GenerateResult, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    result.grid().save(picture, "PNG")
    write_atomic(path, picture.getvalue(), sync=False)


def _summary(result: GenerateResult) -> str:
    if result.seeds is None:
        return f"{_counted(len(result), 'sample')} of {result.model} version {result.version}"
    shown = ", ".join(map(str, result.seeds[:16].tolist())) + ", ..." * (len(result) > 16)
    return (
        f"{_counted(len(result), 'sample')} of {result.model} version {result.version}, "
        f"{'seeds' if len(result) != 1 else 'seed'} {shown}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _told(result: GenerateResult, files: list[Path], out: Path | None, grid: Path | None) -> str:
    """Return what was written, and what was not."""
    lines = [_summary(result)]
    if out:
        lines.append(f"{_counted(len(files), 'file')} in {out}")
    if grid:
        lines.append(f"grid: {grid}")
        spec = result.info.spec
        others = [item.name for item in spec.outputs if item is not spec.picture]
        if others and not out:
            lines.append(f"not in it: {', '.join(others)}; --out FOLDER writes every output")
    return "\n".join(lines)


def _json_from_result(
    result: GenerateResult, files: list[Path], grid: Path | None
) -> dict[str, Any]:
    return {
        **json_from_info(result.info),
        "seeds": None if result.seeds is None else result.seeds.tolist(),
        "inputs": {
            name: _numbers(values) if values.ndim == 1 else _texts(result, name)
            for name, values in result.inputs.items()
        },
        "files": [str(path) for path in files],
        "grid": str(grid) if grid else None,
    }


def _numbers(values: NDArray[Any]) -> list[Any]:
    # A float32 is written as short as it reads: 0.7, not 0.699999988079071.
    return [float(str(v)) if isinstance(v, np.floating) else v.item() for v in values]


def _texts(result: GenerateResult, name: str) -> list[str]:
    item = result.info.spec.find(name)
    return [item.text(row) for row in result.inputs[name]] if item else []
