"""Noise that a forward draws for itself: found, made constant, or taken from inputs.

A generator whose layers add noise (StyleGAN's do) gives another image at every call, and no seed
would fix it. Here every call of a random function in a forward gets its numbers from elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentry.contract.errors import ExportRefused
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.stage import NetworkStage
from latentry.export.graphs.intercepted import Intercepted, Network, run_networks
from latentry.export.graphs.onnx_export import network_of

_FREEZING_SEED = 0
_ROWS = (2, 3)


@dataclass(frozen=True)
class NoiseCall:
    """One call of a random function in a forward.

    Attributes:
        name: ``noise_0``, ``noise_1``, ... in the order of the calls.
        network: The network in whose forward it is.
        shape: What it draws: for one row, or where it has no axis for rows, for all of them.
        has_rows: Whether it has an axis for rows.
        uniform: Whether it is uniform in [0, 1); otherwise it is standard normal.
    """

    name: str
    network: str
    shape: tuple[int, ...]
    has_rows: bool
    uniform: bool

    def draw(self, seed: int) -> Tensor:
        """Return float32 noise of ``shape`` that follows from ``seed`` and the name alone."""
        return torch.from_numpy(LatentDrawer(self.latent).draw([seed])).reshape(self.shape)

    @property
    def latent(self) -> LatentInput:
        """The input that it is where noise follows from the seed."""
        shape = self.shape or (1,)
        if self.uniform:
            return LatentInput(
                name=self.name, shape=shape, distribution="uniform", minimum=0.0, maximum=1.0
            )
        return LatentInput(name=self.name, shape=shape)


def find_noise(module: nn.Module, spec: GeneratorSpec) -> tuple[NoiseCall, ...]:
    """Return the calls of random functions in the forwards of a generator.

    Raises:
        ExportRefused: What one draws depends on the number of rows otherwise than by its first
            axis, or there are more of them for more rows.
        Exception: Whatever the forwards raise.
    """
    found = []
    for rows in _ROWS:
        calls: list[_Recorded] = []
        run_networks(module, spec, rows, partial(_Recording, calls))
        found.append(calls)
    if len(found[0]) != len(found[1]):
        raise ExportRefused(
            f"the forward draws noise {len(found[0])} times for {_ROWS[0]} rows and "
            f"{len(found[1])} times for {_ROWS[1]}; draw it for all rows at once"
        )
    return tuple(
        _noise_call(f"noise_{index}", *pair) for index, pair in enumerate(zip(*found, strict=True))
    )


@dataclass(frozen=True)
class _Recorded:
    network: str
    uniform: bool
    shape: tuple[int, ...]


def _noise_call(name: str, few: _Recorded, more: _Recorded) -> NoiseCall:
    """Return the call that drew as in ``few`` for a few rows, and as in ``more`` for more."""
    if few.shape == more.shape and few.shape[:1] != (1,):
        return NoiseCall(name, few.network, few.shape, False, few.uniform)
    first = (few.shape[0], more.shape[0])
    if first not in ((1, 1), _ROWS) or few.shape[1:] != more.shape[1:]:
        raise ExportRefused(
            f"the {few.network} draws noise of shape {list(few.shape)} for {_ROWS[0]} rows and of "
            f"{list(more.shape)} for {_ROWS[1]}; its first axis must be the rows, and the others "
            "must not depend on them"
        )
    return NoiseCall(name, few.network, few.shape[1:], True, few.uniform)


def freeze_noise(module: nn.Module, spec: GeneratorSpec, calls: Sequence[NoiseCall]) -> nn.Module:
    """Return the generator with constants where ``calls`` drew noise, the same for every row."""
    networks: dict[str, nn.Module] = {}
    for name in spec.networks:
        own = [call for call in calls if call.network == name]
        noise = [nn.Parameter(call.draw(_FREEZING_SEED), requires_grad=False) for call in own]
        networks[name] = network = Network(module, name, partial(_Replacing, own, noise))
        network.noise = nn.ParameterList(noise)  # so that they are the generator's own
    return Intercepted(networks)


def seed_noise(
    module: nn.Module, spec: GeneratorSpec, calls: Sequence[NoiseCall]
) -> tuple[nn.Module, GeneratorSpec]:
    """Return the generator with a latent for each of ``calls``, and its spec.

    Raises:
        ExportRefused: A call has no axis for rows, or the spec has an input of its name.
    """
    if taken := [call.name for call in calls if spec.find(call.name)]:
        raise ExportRefused(
            f"the noise that the forward draws would be the input {taken[0]}, which the spec has "
            "already; call that otherwise"
        )
    own = {name: [call for call in calls if call.network == name] for name in spec.networks}
    networks: dict[str, nn.Module] = {
        name: NoiseFromInputs(module, name, found) for name, found in own.items()
    }
    stages = [
        stage.model_copy(
            update={"takes": (*stage.takes, *(call.name for call in own[stage.network]))}
        )
        if isinstance(stage, NetworkStage)
        else stage
        for stage in spec.pipeline
    ]
    inputs = (*spec.inputs, *(call.latent for call in calls))
    return Intercepted(networks), GeneratorSpec(
        inputs=inputs, outputs=spec.outputs, stages=tuple(stages)
    )


class NoiseFromInputs(nn.Module):
    """A network that takes its noise as inputs: ``(*inputs, *noise) -> output``.

    Args:
        module: The generator.
        network: Which of its networks.
        calls: The calls of that network; for each there is one input, float32 [N, *shape]. Where a
            call draws the same for all rows, each row gets its own all the same.

    Raises:
        ExportRefused: One of the calls has no axis for rows.
    """

    def __init__(self, module: nn.Module, network: str, calls: Sequence[NoiseCall]) -> None:
        super().__init__()
        if fixed := [call for call in calls if not call.has_rows]:
            raise ExportRefused(
                f"{fixed[0].name} of the {network} is drawn as {list(fixed[0].shape)} for all "
                "rows; draw it with the rows as its first axis, or keep it (--noise freeze)"
            )
        self.module = module
        self.network = network
        self.calls = tuple(calls)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network gives with this noise."""
        count = len(inputs) - len(self.calls)
        noise = [
            tensor.reshape(-1, *call.shape)  # one number a row comes without its axis
            for call, tensor in zip(self.calls, inputs[count:], strict=True)
        ]
        with _Replacing(self.calls, noise):
            return network_of(self.module, self.network)(*inputs[:count])


class _NoiseMode(TorchFunctionMode):
    """Sees every call of a random function, and may give other numbers than it would draw."""

    def replace(self, template: Tensor, uniform: bool) -> Tensor:
        """Return noise for ``template``, which has the shape and dtype that were asked for."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _EMPTY:
            kwargs.pop("generator", None)
            return self.replace(_EMPTY[func](*args, **kwargs), func in _UNIFORM)
        if func in _IN_PLACE:
            return self._fill(func in _UNIFORM, *args, **kwargs)
        if func is torch.normal:
            return self._normal(*args, **kwargs)
        return func(*args, **kwargs)

    def _fill(
        self, uniform: bool, target: Tensor, low: Any = 0.0, high: Any = 1.0, **names: Any
    ) -> Tensor:
        """Fill ``target`` as ``normal_(mean, std)`` and ``uniform_(from, to)`` do."""
        low = names.get("mean", names.get("from", low))
        high = names.get("std", names.get("to", high))
        return target.copy_(self.replace(target, uniform) * (high - low if uniform else high) + low)

    def _normal(
        self, mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, out: Any = None, **names: Any
    ) -> Tensor:
        names.pop("generator", None)
        if size is not None:
            template = torch.empty(size, **names)
        else:
            template = torch.empty_like(mean if isinstance(mean, Tensor) else std)
        noise: Tensor = self.replace(template, False) * std + mean
        return noise


_EMPTY: dict[Any, Callable[..., Tensor]] = {
    torch.randn: torch.empty,
    torch.rand: torch.empty,
    torch.randn_like: torch.empty_like,
    torch.rand_like: torch.empty_like,
}
_IN_PLACE = (Tensor.normal_, Tensor.uniform_)
_UNIFORM = (torch.rand, torch.rand_like, Tensor.uniform_)


class _Recording(_NoiseMode):
    """Notes what is drawn, and draws nothing."""

    def __init__(self, calls: list["_Recorded"], network: str) -> None:
        super().__init__()
        self._calls = calls
        self._network = network

    def replace(self, template: Tensor, uniform: bool) -> Tensor:
        self._calls.append(_Recorded(self._network, uniform, tuple(template.shape)))
        return torch.zeros_like(template)


class _Replacing(_NoiseMode):
    """Gives the noise that it holds, call by call."""

    def __init__(self, calls: Sequence[NoiseCall], noise: Sequence[Tensor]) -> None:
        super().__init__()
        self._turns = iter(zip(calls, noise, strict=True))

    def replace(self, template: Tensor, uniform: bool) -> Tensor:
        _, noise = next(self._turns)
        noise = noise.to(template.dtype)
        return noise.expand(template.shape) if noise.ndim < template.ndim else noise
