"""Networks that compute in float16 or bfloat16, exported in float32.

Mixed precision is for training on a GPU. The served network computes in float32, so every cast to
half precision in a forward is left out, and so are half-precision weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentry.contract.errors import ExportRefused
from latentry.contract.spec import GeneratorSpec
from latentry.export.graphs.intercepted import Intercepted, Network, run_networks

_HALF = (torch.float16, torch.bfloat16)
_STYLEGAN_SWITCH = "use_fp16"  # of its blocks, which also check that they got what it says
_CASTS = (Tensor.half, Tensor.bfloat16)


def half_precision(module: nn.Module, spec: GeneratorSpec) -> str | None:
    """Return which half precision a generator computes in, such as ``float16``; None if in none.

    Raises:
        Exception: Whatever its forwards raise.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in _HALF:
            return _name(tensor.dtype)
    watch = _Watching()
    try:
        run_networks(module, spec, 2, lambda _: watch)
    except Exception:
        if watch.found is None:  # otherwise, half precision may be what fails on a CPU
            raise
    return _name(watch.found) if watch.found else None


def in_float32(module: nn.Module, spec: GeneratorSpec) -> nn.Module:
    """Return the generator, computing in float32 throughout; ``module`` is changed.

    Raises:
        ExportRefused: It comes to half precision by another way than casts, such as autocast, or
            its forward fails in float32.
    """
    module.float()
    for child in module.modules():
        if getattr(child, _STYLEGAN_SWITCH, False) is True:
            setattr(child, _STYLEGAN_SWITCH, False)
    result = Intercepted({name: Network(module, name, _InFloat32) for name in spec.networks})
    try:
        found = half_precision(result, spec)
    except Exception as error:  # a user's forward may raise anything
        raise ExportRefused(
            f"{type(module).__name__} computes in half precision and fails in float32: "
            f"{type(error).__name__}: {error}; turn half precision off in the module"
        ) from error
    if found:
        raise ExportRefused(
            f"{type(module).__name__} computes in {found} by itself, probably in a torch.autocast "
            "of its forward; take that out for the export: what is served is float32"
        )
    return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Watching(TorchFunctionMode):
    """Notes the first half precision that anything comes out in."""

    found: torch.dtype | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None and isinstance(result, Tensor) and result.dtype in _HALF:
            self.found = result.dtype
        return result


class _InFloat32(TorchFunctionMode):
    """Makes every cast to half precision one to float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _CASTS:
            func = Tensor.float
        names = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return func(*(_widened(value) for value in args), **names)


def _widened(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value
