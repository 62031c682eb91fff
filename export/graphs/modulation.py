"""Modulated convolutions (StyleGAN2), turned into convolutions with constant weights.

Fused, a modulated convolution scales its weights by a style for each sample and runs all samples
at once as groups, so that the batch is part of the graph. A scale of the weights' input channels is
one of what comes in, a scale of their output channels is one of what comes out:

    conv(x, W * s * d) = conv(x * s, W) * d

(Karras et al. 2020, section 2.2.) So it does not matter how a forward writes it: the weights are
taken apart into factors, and each factor goes where it belongs.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import fx

from latentry.contract.errors import ExportRefused
from latentry.export.graphs.factors import Factor, Factors, Maker
from latentry.export.graphs.row_graph import depends_on_inputs, module_path, row_shape

_aten = torch.ops.aten
_PLAIN = frozenset(
    (
        *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
        *(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding),
    )
)
_TRANSPOSED = frozenset(
    (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
)
_GROUPS = 6  # its place among the arguments of all of them
_SQUARES = frozenset((_aten.square.default, _aten.pow.Tensor_Scalar, _aten.mul.Tensor))


def separate_modulation(graph: fx.GraphModule) -> int:
    """Give every convolution of a row graph constant weights, in place; return how many had not.

    Raises:
        ExportRefused: The weights of one depend on the row otherwise than by factors for its input
            and output channels.
    """
    varying = depends_on_inputs(graph)
    found = [node for node in graph.graph.nodes if _is_modulated(node, varying)]
    for conv in found:
        conv.replace_all_uses_with(_separated(conv, Maker(conv, varying)))
        graph.graph.erase_node(conv)
    if found:
        graph.graph.eliminate_dead_code()
        _shorten_sums(graph)
        graph.graph.lint()
        graph.recompile()
    return len(found)


def _is_modulated(node: fx.Node, varying: set[fx.Node]) -> bool:
    """Whether ``node`` is a convolution whose weights or bias depend on the row."""
    return node.target in _PLAIN | _TRANSPOSED and not varying.isdisjoint(
        item for item in node.args[1:3] if isinstance(item, fx.Node)
    )


def _separated(conv: fx.Node, make: Maker) -> fx.Node:
    """Return what computes the same as ``conv`` with constant weights."""
    args: Any = conv.args
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    shape, factors = row_shape(weight), Factors(make)
    parts = factors.of(weight)
    inwards, outwards = _scales(conv, parts)
    for scale in inwards:
        x = make(_aten.mul.Tensor, x, _along_channels(scale, len(shape), make))
    result = make(conv.target, x, factors.constant(parts, shape), None, *args[3:], **conv.kwargs)
    for scale in outwards:
        result = make(_aten.mul.Tensor, result, _along_channels(scale, len(shape), make))
    if bias is not None:
        result = make(_aten.add.Tensor, result, _along_channels(bias, len(shape), make))
    return result


def _along_channels(node: fx.Node, rank: int, make: Maker) -> fx.Node:
    return make.reshape(node, [1, -1, *[1] * (rank - 2)])


def _scales(conv: fx.Node, factors: list[Factor]) -> tuple[list[Any], list[Any]]:
    """Return the factors of the weights that scale what comes in, and what comes out."""
    groups = conv.args[_GROUPS] if len(conv.args) > _GROUPS else conv.kwargs.get("groups", 1)
    # Axis 1 of the weights holds the channels of one group alone.
    free = {0, 1} if groups == 1 else {0}
    if not any(factor.is_constant_tensor for factor in factors):
        raise ExportRefused(_inseparable(conv))
    scales: tuple[list[Any], list[Any]] = ([], [])
    in_axis = 0 if conv.target in _TRANSPOSED else 1
    for factor in factors:
        if factor.varies:
            if len(factor.spread) > 1 or not factor.spread <= free:
                raise ExportRefused(_inseparable(conv))
            scales[factor.spread != {in_axis}].append(factor.node)
    return scales


def _inseparable(conv: fx.Node) -> str:
    return (
        f"a convolution in {module_path(conv) or 'the forward'} has weights of its own for each "
        "sample, and they are no constant weights times one factor for each input channel and one "
        "for each output channel (a style and its demodulation). Write them as such a product, or "
        "write the convolution as torch.nn.functional.unfold and a matrix product"
    )


def _shorten_sums(graph: fx.GraphModule) -> None:
    """Compute sums of squared modulated weights, as demodulation has them, without those weights.

    The sum of (W s)^2 over input channels and taps is the matrix of W^2, summed over its taps,
    times s^2: for 512 channels and 3x3 taps a hundredth of the numbers.
    """
    varying = depends_on_inputs(graph)
    for node in list(graph.graph.nodes):
        if node.target is not _aten.sum.dim_IntList or node not in varying:
            continue
        root = _squared(node.args[0])
        if root is None:
            continue
        shorter = _short_sum(node, root, Maker(node, varying))
        if shorter is not None:
            node.replace_all_uses_with(shorter)
    graph.graph.eliminate_dead_code()


def _squared(node: object) -> fx.Node | None:
    """Return x where ``node`` is the square of x."""
    if not isinstance(node, fx.Node) or node.target not in _SQUARES:
        return None
    root = node.args[0]
    squared = node.target is _aten.square.default or node.args[1] in (2, root)
    return root if squared and isinstance(root, fx.Node) else None


def _short_sum(node: fx.Node, root: fx.Node, make: Maker) -> fx.Node | None:
    """Return the sum of squares of ``root`` by a matrix; None where it is not of that kind."""
    shape, summed, factors = row_shape(root), _summed(node), Factors(make)
    parts = factors.of(root)
    scales = [part for part in parts if part.varies]
    along = set[int]().union(*(part.spread & summed for part in scales))
    kept = {axis for axis, size in enumerate(shape) if size != 1 and axis not in summed}
    if len(along) != 1 or len(kept) != 1 or any(len(part.spread) > 1 for part in scales):
        return None
    if not any(part.is_constant_tensor for part in parts):
        return None
    square = _square(factors.constant(parts, shape), make)
    others = sorted(set(range(len(shape))) - along - kept)
    matrix = make(_aten.sum.dim_IntList, square, others)
    if min(kept) > min(along):
        matrix = make(_aten.t.default, matrix)
    sums = _product_of_squares((part for part in scales if part.spread & summed), make)
    sums = make(_aten.linear.default, sums, matrix)
    if outer := [part for part in scales if not part.spread & summed]:
        sums = make(_aten.mul.Tensor, sums, _product_of_squares(outer, make))
    return make.reshape(sums, row_shape(node))


def _summed(node: fx.Node) -> set[int]:
    source, dims = node.args[:2]
    return {dim % len(row_shape(source)) for dim in cast(list[int], dims)}


def _product_of_squares(factors: Iterable[Factor], make: Maker) -> fx.Node:
    """Return [1, n], the squared product of factors along one axis."""
    rows = [make.reshape(cast(fx.Node, factor.node), [1, -1]) for factor in factors]
    product = rows[0]
    for other in rows[1:]:
        product = make(_aten.mul.Tensor, product, other)
    return _square(product, make)


def _square(node: fx.Node, make: Maker) -> fx.Node:
    return make(_aten.mul.Tensor, node, node)
