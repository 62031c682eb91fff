"""How far a build in fewer bits may be from FP32, by its precision.

========================= ========================================================================
worst_psnr_db             least peak signal-to-noise ratio of any sample, over all outputs
below_30_db               share of samples with less than 30 dB
worst_patch_levels        largest mean difference of a patch of 8 x 8 pixels, of 255 levels
bias_levels               largest mean difference of a channel over all samples, of 255 levels
frechet                   upper end of the 95 % interval of the Frechet distance from FP32's
                          pictures, as a share of a reference
========================= ========================================================================
"""

from collections.abc import Mapping

from latentry.contract.errors import BadRequest, listed

LEAST = ("worst_psnr_db",)
"""Figures that must not be below their bound; all others must not be above it."""

BOUNDS: dict[str, dict[str, float]] = {
    "fp16": {
        "worst_psnr_db": 35.0,
        "below_30_db": 0.0,
        "worst_patch_levels": 8.0,
        "bias_levels": 0.5,
        "frechet": 0.05,
    },
    "bf16": {
        "worst_psnr_db": 27.0,
        "below_30_db": 0.001,
        "worst_patch_levels": 24.0,
        "bias_levels": 0.5,
        "frechet": 0.05,
    },
    "int8": {
        "worst_psnr_db": 25.0,
        "below_30_db": 0.01,
        "worst_patch_levels": 32.0,
        "bias_levels": 0.5,
        "frechet": 0.05,
    },
}
"""A precision that is not here must draw what FP32 draws, within the tolerance of an export."""


def bounds_of(precision: str, overrides: Mapping[str, float]) -> dict[str, float] | None:
    """Return the bounds of a precision; None where nothing but rounding is allowed.

    Raises:
        BadRequest: An override names no bound of this precision.
    """
    bounds = BOUNDS.get(precision)
    for name in overrides:
        if bounds is None or name not in bounds:
            known = listed(bounds) if bounds else f"{precision} has none: it must draw as FP32 does"
            raise BadRequest(f"there is no bound {name!r}; {known}")
    return None if bounds is None else {**bounds, **overrides}


def is_within(name: str, found: float, bound: float) -> bool:
    """Whether a figure is as good as its bound."""
    return found >= bound if name in LEAST else found <= bound
