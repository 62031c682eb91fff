"""A user's own generator: its module from ``package.module:build``, its stages checked."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from latentry.contract.errors import BadRequest, ExportRefused, NotFound
from latentry.contract.spec import GeneratorSpec
from latentry.training.checkpoint import load_weights

_TARGET = re.compile(r"(?P<module>\w+(\.\w+)*):(?P<attribute>\w+)", re.ASCII)


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
    build = _build_from_target(target)
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
    """Check that ``module`` can run each of the spec's stages.

    Raises:
        ExportRefused: The spec has ``w`` and the module lacks ``mapping`` or ``synthesis``.
    """
    if spec.w is None:
        return
    missing = [stage for stage in spec.stages if not callable(getattr(module, stage, None))]
    if missing:
        children = ", ".join(name for name, _ in module.named_children()) or "none"
        raise ExportRefused(
            f"the spec has the input w, but {type(module).__name__} has no "
            f"{' and no '.join(missing)} (its submodules: {children}); give it "
            "mapping(z[, class_label]) -> w and synthesis(w) -> sample, or take w and "
            "truncation_psi out of the spec"
        )


def _build_from_target(target: str) -> Callable[[], object]:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise BadRequest(f"{target!r} names no function; write it as my_package.my_module:build")
    module = _import_module(match["module"])
    build = getattr(module, match["attribute"], None)
    if build is None:
        functions = [name for name, value in vars(module).items() if callable(value)]
        raise NotFound(
            f"{match['module']} ({module.__file__}) has no {match['attribute']!r}; "
            f"what can be called there: {', '.join(functions) or 'nothing'}"
        )
    if not callable(build):
        raise BadRequest(
            f"{target} is a {type(build).__name__}; name a function that takes nothing and "
            "returns the generator"
        )
    return build  # type: ignore[no-any-return]  # callable() does not narrow an Any


def _import_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there but imports something missing is another matter.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise NotFound(
                f"{name} was found, but it imports {error.name!r}, which is not installed here"
            ) from error
        raise NotFound(
            f"there is no Python module {error.name!r} in {here} or among the installed packages; "
            "run this in the folder that holds it, or install it"
        ) from error
    except Exception as error:
        raise BadRequest(f"importing {name} failed: {type(error).__name__}: {error}") from error
