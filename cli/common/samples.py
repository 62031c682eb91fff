"""What the commands that draw samples share: their options, and what is told of them."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from latentry.cli.common.usage import WrongUsage, reading_options
from latentry.clients.client import Client
from latentry.clients.ranges import parse_classes, parse_seeds
from latentry.clients.samples import MAX_SAMPLES
from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.spec import Role
from latentry.contract.transport import ModelInfo
from latentry.contract.wire import FILE_FORMATS

_FORMATS = ", ".join(FILE_FORMATS)

Model = Annotated[str, typer.Argument(help="Name of the model.")]
SeedsOption = Annotated[str | None, typer.Option(help="Seeds and ranges of seeds: 0-63,100.")]
CountOption = Annotated[
    int | None, typer.Option("--n", min=1, help="So many images, seeds at random.")
]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", help="Class labels: 7, or 0-9, which are gone through in turn."),
]
PsiOption = Annotated[float | None, typer.Option("--psi", help="truncation_psi; 1 is off.")]
FormatOption = Annotated[str, typer.Option(help=f"Format of the files: {_FORMATS}.")]
RetryOption = Annotated[
    float | None, typer.Option(min=0, help="Wait so many seconds for a busy or lost server.")
]


def samples_from_options(seeds: str | None, n: int | None) -> dict[str, Any]:
    """Return the arguments of ``Client.generate`` that the options for samples mean."""
    if (seeds is None) == (n is None):
        raise WrongUsage("give either --seeds, such as --seeds 0-63,100, or --n")
    with reading_options():
        return {"n": n} if seeds is None else {"seeds": parse_seeds(seeds, called="--seeds")}


def class_labels(
    client: Client, model: str, text: str | None, samples: Mapping[str, Any]
) -> NDArray[np.int64] | None:
    """Return the classes in ``text``, gone through in turn: one for each of ``samples``."""
    if text is None:
        return None
    try:
        labels = parse_classes(text, called="--class")
        return np.resize(labels, min(count_samples(samples), MAX_SAMPLES))
    except BadRequest as error:
        raise WrongUsage(f"{error}{_classes_of(client, model)}") from None


def count_samples(samples: Mapping[str, Any]) -> int:
    """Return how many images ``samples`` are."""
    return int(samples["n"]) if "n" in samples else len(samples["seeds"])


def _classes_of(client: Client, model: str) -> str:
    """Return the end of a message that says which classes ``model`` has, if it can be asked."""
    try:
        item = client.info(model).spec.find(Role.CLASS_LABEL)
    except LatentryError:
        return ""
    return f"; {model} takes {item.allowed if item else 'no class'}"


def file_format_from_text(text: str) -> str:
    """Return ``text`` if it names a format of files; raises WrongUsage."""
    if text not in FILE_FORMATS:
        raise WrongUsage(f"--format {text} is no file format; use one of {_FORMATS}")
    return text


def json_from_info(info: ModelInfo) -> dict[str, str]:
    """Return what ``--json`` says of a served model."""
    return {
        "model": info.name,
        "version": info.version,
        "model_digest": info.model_digest,
        "engine_class": info.engine_class,
    }
