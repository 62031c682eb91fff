"""The average w of a generator, found where its training kept it."""

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.truncate import TruncateStage
from latentry.contract.strict import explain

_NAME = "w_avg"


def with_w_avg(module: nn.Module, spec: GeneratorSpec) -> GeneratorSpec:
    """Return the spec with the average that ``module`` keeps wherever truncation has none.

    Raises:
        ExportRefused: The module keeps none, one for each layer, or one of another width than w.
    """
    if not any(_lacks_average(stage) for stage in spec.pipeline):
        return spec
    w_avg = w_avg_from_module(module)
    if w_avg is None:
        raise ExportRefused(
            f"truncate has no w_avg in the spec, and {type(module).__name__} keeps none: no "
            "buffer, parameter or tensor of it is called w_avg; write the average of w over many "
            "seeds into the spec, or take the truncate stage out"
        )
    if w_avg.ndim != 1:
        raise ExportRefused(
            f"the w_avg of {type(module).__name__} has shape {list(w_avg.shape)}, one for each "
            "layer; truncate takes one for all, [w_dim]: write it into the spec"
        )
    stages = tuple(
        stage.model_copy(update={"w_avg": tuple(w_avg.tolist())})
        if _lacks_average(stage)
        else stage
        for stage in spec.pipeline
    )
    try:
        return GeneratorSpec(inputs=spec.inputs, outputs=spec.outputs, stages=stages)
    except ValidationError as error:
        raise ExportRefused(
            f"the w_avg of {type(module).__name__} does not fit the spec: {explain(error)}"
        ) from error


def _lacks_average(stage: object) -> bool:
    return isinstance(stage, TruncateStage) and stage.w_avg is None


def w_avg_from_module(module: nn.Module) -> NDArray[np.float32] | None:
    """Return the average w that ``module`` keeps, or None where it keeps none.

    It is the buffer, parameter or plain tensor ``w_avg``, as StyleGAN's mapping networks have it:
    the one of the module that is nearest to the top, so ``mapping.w_avg`` comes before
    ``G_ema.mapping.w_avg``.

    Returns:
        float32 [w_dim], or [num_ws, w_dim] where there is one for each layer.

    Raises:
        ExportRefused: It is not finite, has other axes, or there are two at the same depth.
    """
    found = {
        f"{path}.{_NAME}".removeprefix("."): value
        for path, child in module.named_modules()
        if isinstance(value := getattr(child, _NAME, None), Tensor)
    }
    if not found:
        return None
    depth = min(name.count(".") for name in found)
    names = [name for name in found if name.count(".") == depth]
    if len(names) > 1:
        raise ExportRefused(
            f"{type(module).__name__} has {' and '.join(names)}; write the one that belongs to "
            "the generator into the spec as w_avg"
        )
    return _checked(names[0], found[names[0]])


def _checked(name: str, value: Tensor) -> NDArray[np.float32]:
    w_avg: NDArray[np.float32] = value.detach().cpu().float().numpy()
    if w_avg.ndim not in (1, 2):
        raise ExportRefused(
            f"{name} has shape {list(w_avg.shape)}; it must be [w_dim] or [num_ws, w_dim]"
        )
    if not np.isfinite(w_avg).all():
        raise ExportRefused(f"{name} holds NaN or infinity; are these the weights of a training?")
    return w_avg.copy()
