"""A user's own generator: its module from ``package.module:build``, its stages checked."""

from pathlib import Path

from torch import nn

from latentry.contract.errors import BadRequest, ExportRefused, listed
from latentry.contract.importing import function_from_target
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.truncate import TruncateStage
from latentry.training.checkpoint import load_weights


def module_from_target(target: str, weights: Path) -> nn.Module:
    """Return the generator that ``target`` builds, with ``weights`` loaded, in evaluation mode.

    Importing runs the module's code. As with ``python -m``, the current directory comes first on
    ``sys.path``, and it stays there, because the module may import more of it later.

    Args:
        target: ``my_package.my_module:build``; ``build()`` takes nothing and returns the module.
        weights: A safetensors file with exactly the names, shapes and dtypes of the module's
            ``state_dict()``.

    Raises:
        BadRequest: ``target`` is written differently, is not callable, or gives no ``nn.Module``.
        NotFound: There is no such Python module, or it has no such attribute.
        CheckpointError: The weights are damaged or do not fit.
    """
    build = function_from_target(target, Path.cwd())
    try:
        module = build()
    except Exception as error:
        raise BadRequest(
            f"{target} failed: {type(error).__name__}: {error}; it is called without arguments and "
            "must return the generator"
        ) from error
    if not isinstance(module, nn.Module):
        raise BadRequest(
            f"{target} returned a {type(module).__name__}; "
            "it must return the generator as a torch.nn.Module"
        )
    load_weights(module, weights)
    return module


def check_stages(module: nn.Module, spec: GeneratorSpec) -> None:
    """Check that ``module`` has each of the spec's networks.

    Raises:
        ExportRefused: It lacks one, or a truncation lacks what it needs.
    """
    for stage in spec.pipeline:
        if isinstance(stage, TruncateStage) and stage.w_avg is None:
            raise ExportRefused(
                "the stage truncate has no w_avg, towards which it would move w; give it in the "
                "spec, as many numbers as w_dim"
            )
    missing = [
        name
        for name in spec.networks
        if name != "generator" and not callable(getattr(module, name, None))
    ]
    if missing:
        children = listed(name for name, _ in module.named_children()) or "none"
        raise ExportRefused(
            f"the spec has the networks {', '.join(spec.networks)}, but {type(module).__name__} "
            f"has no {' and no '.join(missing)} (its submodules: {children}); give it submodules "
            "or methods of these names, or correct the stages in the spec"
        )
