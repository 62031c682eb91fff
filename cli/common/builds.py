"""What people are told of a build, and the option ``--bound`` of commands that judge one."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from latentry.cli.common.usage import WrongUsage

if TYPE_CHECKING:
    from latentry.serving.entries.manifests import Build

Bound = Annotated[
    list[str] | None,
    typer.Option(
        help="Another bound for how far samples may be from FP32's, such as worst_psnr_db=20; "
        "again for more.",
        metavar="NAME=NUMBER",
    ),
]


def bounds_from_texts(texts: Sequence[str]) -> dict[str, float]:
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


def nearness(build: "Build") -> str:
    """Return how far a build's samples are from what it is judged by, and how far they may be."""
    if build.gate and "worst_psnr_db" in build.gate.found:
        least = build.gate.bounds.get("worst_psnr_db")
        allowed = f" (allowed {least:g})" if least is not None else ""
        found = build.gate.found["worst_psnr_db"]
        return f"worst of {build.gate.samples:,} samples {found:.1f} dB{allowed}"
    tolerance = build.parity.tolerance
    allowed = f" (allowed {tolerance:.0e})" if tolerance is not None else ""
    return f"{max(build.parity.differences.values()):.1e}{allowed}"
