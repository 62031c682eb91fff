"""A user's generator made into one that can be served: float32 throughout, no noise of its own.

What is exported, and what the export is proved against, is the generator that comes out here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.half_precision import half_precision, in_float32
from latentry.export.graphs.intercepted import run_networks
from latentry.export.graphs.layer_noise import NoiseCall, find_noise, freeze_noise, seed_noise
from latentry.export.graphs.onnx_export import eval_copy

NoiseMode = Literal["freeze", "seed"]
"""What becomes of noise that a forward draws: constants, drawn once, or latents of the seed."""

_SHOWN = 4


@dataclass(frozen=True)
class Prepared:
    """A generator that can be exported, and what was changed, for people."""

    module: nn.Module
    spec: GeneratorSpec
    warnings: tuple[str, ...] = ()


def prepare(module: nn.Module, spec: GeneratorSpec, *, noise: NoiseMode | None = None) -> Prepared:
    """Return the generator to be exported; ``module`` is not changed.

    One that computes in half precision becomes float32. Noise that its forward draws becomes
    constant, or latents, where that is asked for. A generator with neither comes back as it is, and
    so does one whose forward fails, which the export explains.

    Raises:
        ExportRefused: Its forward draws noise and ``noise`` is None, or it can be made neither
            float32 nor free of noise.
    """
    whole = Prepared(module, spec)
    prepared, warnings = eval_copy(module), []
    try:
        if dtype := half_precision(prepared, spec):
            prepared, own = in_float32(copy.deepcopy(prepared), spec), prepared
            warnings.append(_half_warning(dtype, _distance(own, prepared, spec)))
        if calls := find_noise(prepared, spec):
            if noise is None:
                raise ExportRefused(_noise_refusal(calls))
            if noise == "freeze":
                prepared = freeze_noise(prepared, spec, calls)
            else:
                prepared, spec = seed_noise(prepared, spec, calls)
            warnings.append(_noise_warning(calls, noise))
    except ExportRefused:
        raise
    except Exception:  # a user's forward may raise anything; the export says what, and why
        return whole
    return Prepared(prepared, spec, tuple(warnings)) if warnings else whole


def _distance(own: nn.Module, prepared: nn.Module, spec: GeneratorSpec) -> float | None:
    """Return how far the outputs of two generators are apart; None where the first fails."""
    try:
        first = run_networks(own, spec, 2)
    except Exception:  # many operations have no half precision on a CPU
        return None
    second = run_networks(prepared, spec, 2)
    names = [item.name for item in spec.outputs]
    return max(float((first[name].float() - second[name]).abs().max()) for name in names)


def _half_warning(dtype: str, distance: float | None) -> str:
    if distance is None:
        return f"the module computes in {dtype}, which does not run here; float32 was exported"
    return (
        f"the module computes in {dtype}; float32 was exported, whose samples differ from the "
        f"module's own by up to {distance:.2g}"
    )


def _noise_refusal(calls: Sequence[NoiseCall]) -> str:
    return (
        f"the forward draws random numbers itself ({_in_words(calls)}), so a seed would not fix "
        "its image. Export it with --noise freeze, which draws them once and makes them constants, "
        "or with --noise seed, which makes them latents, drawn from the seed as z is"
    )


def _noise_warning(calls: Sequence[NoiseCall], noise: NoiseMode) -> str:
    if noise == "seed":
        return (
            f"the noise that the forward draws ({_in_words(calls)}) follows from the seed, as the "
            f"inputs {', '.join(call.name for call in calls)}"
        )
    return (
        f"the noise that the forward draws ({_in_words(calls)}) was drawn once and is the same in "
        "every image"
    )


def _in_words(calls: Sequence[NoiseCall]) -> str:
    shown = ", ".join(f"{list(call.shape)} in {call.network}" for call in calls[:_SHOWN])
    more = f" and {len(calls) - _SHOWN} more" if len(calls) > _SHOWN else ""
    return f"{len(calls)} x: {shown}{more}"
