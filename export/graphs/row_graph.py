"""One row of a network as a graph, and that graph over the rows of a batch.

Some forwards work with one number of rows at a time only: those that write the batch's size into a
view, take it as ``int(x.shape[0])``, or make it the groups of a convolution. Traced for a single
row, none of that is left; and what is computed for one row can be computed for every row of a
batch, which is what a served network has to do in any case.
"""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

_REMOVED = ("_assert_tensor_metadata", "_guards_fn", "_assert_scalar", "sym_constrain")
_aten = torch.ops.aten


def row_graph(network: nn.Module, row: tuple[Tensor, ...]) -> fx.GraphModule:
    """Return ``network`` as a graph of plain functions, traced for a batch of one.

    Args:
        network: Takes and gives tensors with a batch axis.
        row: One row of each input, [1, ...].

    Raises:
        Exception: Whatever the tracer or the forward raises.
    """
    program = torch.export.export(network, row, strict=False)
    # Without a table nothing is taken apart; what it does is to make in-place operations plain.
    graph = cast(fx.GraphModule, program.run_decompositions({}).module())
    for node in list(graph.graph.nodes):
        if any(name in str(node.target) for name in _REMOVED):
            graph.graph.erase_node(node)
        elif node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default  # over rows, memory may lie otherwise
        elif (same := _same_as(node)) is not None:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _same_as(node: fx.Node) -> Any:
    """Return the node of which ``node`` is all; None where it does something."""
    if node.target not in (_aten.alias.default, _aten.slice.Tensor, _aten.cat.default):
        return None
    source: Any = node.args[0]
    if node.target is _aten.slice.Tensor:
        # x[i : i + 1] of a loop over the rows, of which there is one.
        return source if row_shape(node) == row_shape(source) else None
    if node.target is _aten.cat.default:
        return source[0] if len(source) == 1 else None
    return source


def spread_over_rows(graph: fx.GraphModule) -> None:
    """Make a row graph one that takes and gives any number of rows, in place.

    Plain operations take any batch as they are; what holds the number of rows are the sizes of
    reshapes. A tensor that depends on the inputs has the rows in its first axis, alone or before
    what was merged into it, so that size may be what is left by the others. Whether that is true,
    the proof against the network itself has to show.
    """
    varying = depends_on_inputs(graph)
    for node in list(graph.graph.nodes):
        if node not in varying:
            continue
        if node.target is _aten.reshape.default or _expands_rows_alone(node):
            node.args = (node.args[0], [-1, *row_shape(node)[1:]])
        elif node.target is _aten.cat.default:
            _join_over_rows(graph.graph, node, varying)
    graph.recompile()


def _expands_rows_alone(node: fx.Node) -> bool:
    """Whether ``node`` expands axes behind the first one, which stays as it is."""
    if node.target is not _aten.expand.default:
        return False
    source = row_shape(node.args[0])
    return len(source) == len(row_shape(node)) and source[0] == row_shape(node)[0]


def _join_over_rows(graph: fx.Graph, cat: fx.Node, varying: set[fx.Node]) -> None:
    """Give the constants among what ``cat`` joins as many rows as the others have."""
    parts: Any = cat.args[0]
    pattern = next(part for part in parts if part in varying)
    with graph.inserting_before(cat):
        rows = graph.call_function(_aten.sym_size.int, (pattern, 0))
        wide = [
            part
            if part in varying
            else graph.call_function(_aten.expand.default, (part, [rows, *row_shape(part)[1:]]))
            for part in parts
        ]
    cat.args = (wide, *cat.args[1:])


def depends_on_inputs(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values are not the same for every row."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def row_shape(node: Any) -> tuple[int, ...]:
    """Return the shape of a tensor of a row graph, which is known throughout."""
    return tuple(int(size) for size in node.meta["val"].shape)


def module_path(node: fx.Node) -> str:
    """Return the path of the module that computes ``node``, such as ``synthesis.b8.conv0``."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("module").removeprefix(".")
