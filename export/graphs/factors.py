"""A tensor of a row graph as a product of factors, each known by the axes along which it varies."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx

from latentry.export.graphs.row_graph import row_shape

_aten = torch.ops.aten
_MULTIPLY = frozenset((_aten.mul.Tensor, _aten.mul.Scalar))
_DIVIDE = frozenset((_aten.div.Tensor, _aten.div.Scalar))
_RESHAPE = frozenset(
    (
        *(_aten.reshape.default, _aten.unsqueeze.default, _aten.flatten.using_ints),
        *(_aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unflatten.int),
        _aten.select.int,
    )
)
_TURN = frozenset((_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.flip.default))
_REPEAT = frozenset((_aten.expand.default, _aten.repeat.default))
_SAME = frozenset((_aten.clone.default, _aten.contiguous.default, _aten.detach.default))
_CAST = frozenset((_aten.to.dtype, _aten._to_copy.default))


class Maker:
    """Makes nodes before ``place``, with their shapes, and notes which vary with the row.

    Attributes:
        varying: The nodes whose values depend on the inputs; what is made of them is added.
    """

    def __init__(self, place: fx.Node, varying: set[fx.Node]) -> None:
        self._place = place
        self.varying = varying

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Return the node of ``target`` called so."""
        with self._place.graph.inserting_before(self._place):
            node = self._place.graph.call_function(target, args, kwargs)
        node.meta["nn_module_stack"] = self._place.meta.get("nn_module_stack")
        values = fx.map_arg(args, lambda item: item.meta["val"])
        with next(item for item in node.all_input_nodes).meta["val"].fake_mode:
            node.meta["val"] = target(*values, **kwargs)
        if self.varying.intersection(node.all_input_nodes):
            self.varying.add(node)
        return node

    def reshape(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        """Return ``node`` in another shape."""
        return self(_aten.reshape.default, node, list(shape))


@dataclass(frozen=True)
class Factor:
    """One factor of a tensor.

    Attributes:
        node: Its values, or one number.
        sizes: Its size along each axis of the tensor: all of the axis, or 1.
        varies: Whether it depends on the row. Then ``node`` may have another shape than ``sizes``:
            the row's axis must stay in front.
    """

    node: fx.Node | float
    sizes: tuple[int, ...]
    varies: bool

    @property
    def spread(self) -> set[int]:
        """The axes along which it varies."""
        return {axis for axis, size in enumerate(self.sizes) if size != 1}

    @property
    def is_constant_tensor(self) -> bool:
        """Whether it is a tensor that is the same for every row."""
        return not self.varies and isinstance(self.node, fx.Node)


class Factors:
    """Takes products apart, and moves what only rearranges a product to its factors."""

    def __init__(self, make: Maker) -> None:
        self._make = make

    def of(self, node: fx.Node) -> list[Factor]:
        """Return factors whose product, as tensors are broadcast, is ``node``."""
        if node in self._make.varying:
            if node.target in _MULTIPLY:
                sides = [self._of_any(side, node) for side in node.args[:2]]
                return [factor for side in sides for factor in side]
            if node.target in _DIVIDE and not node.kwargs:
                return [*self._of_any(node.args[0], node), self._inverse(node)]
            if _only_rearranges(node):
                parts = self.of(_source(node))
                if not any(part.varies and _is_turned(part, node) for part in parts):
                    return [self._rearranged(part, node) for part in parts]
        return [Factor(node, row_shape(node), node in self._make.varying)]

    def constant(self, factors: Iterable[Factor], shape: Sequence[int]) -> fx.Node:
        """Return the product of what is constant among ``factors``, in ``shape``."""
        parts = [factor.node for factor in factors if not factor.varies]
        tensors = [part for part in parts if isinstance(part, fx.Node)]
        result = self._make(_aten.expand.default, tensors[0], list(shape))
        for other in tensors[1:]:
            result = self._make(_aten.mul.Tensor, result, other)
        number = math.prod(part for part in parts if not isinstance(part, fx.Node))
        return result if number == 1 else self._make(_aten.mul.Tensor, result, number)

    def _of_any(self, item: Any, whole: fx.Node) -> list[Factor]:
        """Return the factors of one side of a product, with the axes of the whole."""
        rank = len(row_shape(whole))
        if not isinstance(item, fx.Node):
            return [Factor(float(item), (1,) * rank, varies=False)]
        return [replace(part, sizes=_padded(part.sizes, rank)) for part in self.of(item)]

    def _inverse(self, division: fx.Node) -> Factor:
        rank, divisor = len(row_shape(division)), division.args[1]
        if not isinstance(divisor, fx.Node):
            return Factor(1 / float(divisor), (1,) * rank, varies=False)  # type: ignore[arg-type]
        node = self._make(_aten.reciprocal.default, divisor)
        return Factor(node, _padded(row_shape(divisor), rank), node in self._make.varying)

    def _rearranged(self, factor: Factor, node: fx.Node) -> Factor:
        """Return what ``node`` makes of a factor of its argument."""
        sizes = _rearranged_sizes(factor.sizes, node)
        if factor.varies or not isinstance(factor.node, fx.Node):
            return replace(factor, sizes=sizes)
        if node.target in _RESHAPE:
            return replace(factor, node=self._make.reshape(factor.node, sizes), sizes=sizes)
        if node.target in _TURN:
            whole = self._make.reshape(factor.node, factor.sizes)
            turned = self._make(node.target, whole, *node.args[1:], **node.kwargs)
            return replace(factor, node=turned, sizes=sizes)
        return replace(factor, sizes=sizes)


def _only_rearranges(node: fx.Node) -> bool:
    if node.target in _CAST:
        return bool(node.meta["val"].dtype == _source(node).meta["val"].dtype)
    if node.target in _RESHAPE:
        return _without_ones(row_shape(node)) == _without_ones(row_shape(_source(node)))
    if node.target in _REPEAT:
        sizes = _padded(row_shape(_source(node)), len(row_shape(node)))
        return all(old in (1, new) for old, new in zip(sizes, row_shape(node), strict=True))
    return node.target in _SAME | _TURN


def _is_turned(factor: Factor, node: fx.Node) -> bool:
    """Whether ``node`` puts the values of ``factor`` into another order."""
    if node.target is _aten.flip.default:
        dims: Any = node.args[1]
        return any(factor.sizes[dim] != 1 for dim in dims)
    return node.target in _TURN and len(factor.spread) > 1


def _rearranged_sizes(sizes: tuple[int, ...], node: fx.Node) -> tuple[int, ...]:
    if node.target in _RESHAPE:
        whole = row_shape(_source(node))
        kept = iter([size for size, of in zip(sizes, whole, strict=True) if of != 1])
        return tuple(1 if size == 1 else next(kept) for size in row_shape(node))
    if node.target in _TURN:
        with torch.device("meta"):
            return tuple(node.target(torch.empty(sizes), *node.args[1:]).shape)
    return _padded(sizes, len(row_shape(node)))


def _source(node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    return cast(fx.Node, source)


def _padded(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    return (*[1] * (rank - len(shape)), *shape)


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
