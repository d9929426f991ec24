"""Traced graphs (``torch.fx`` graphs of ATen operations) and what operations state about themselves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sb3_ppo_ext.host.pytorch.compile_worker import graph_for_sizes
from sb3_ppo_ext.host.pytorch.trees import tree_leaves

Varying = tuple[tuple[int, int], ...]  # sizes that may be any: index of the input, and the dimension

aten = torch.ops.aten
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def aten_graph(
    function: Callable[..., Any], tensors: Sequence[Tensor], rules: Mapping[Any, Any], varying: Varying = ()
) -> fx.GraphModule:
    """``function`` of these tensors as a graph of ATen operations, its gradient and in-place writes included.

    ``make_fx`` runs it on fake tensors, which compute nothing, draw nothing and write to nothing. ``rules`` rewrite
    operations; one that returns NotImplemented leaves its operation as it is. Rules read sizes, so that there are none
    where sizes are ``varying``.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    if varying:
        graph: fx.GraphModule = graph_for_sizes(function, tensors, varying)
        return graph
    return make_fx(function, dict(rules), tracing_mode="fake")(*tensors)


def result_of(node: fx.Node) -> Any:
    """The fake tensor that stands for the node's result, with its shape, type and storage."""
    return node.meta["val"]


def set_result(node: fx.Node, result: Tensor) -> None:
    """States a new node's result."""
    node.meta["val"] = result


def written_by(node: fx.Node) -> Iterator[Tensor]:
    """The results that an operation writes to in place: its schema marks those arguments."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            yield from (result_of(each) for each in tree_leaves(value) if isinstance(each, fx.Node))


def updates_batch_statistics(node: fx.Node) -> bool:
    """Whether it is batch normalization in training, whose writes to the running statistics no schema marks.

    Its arguments are input, weight, bias, running mean, running variance, and whether it is in training.
    """
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or "batch_norm" not in schema.name or "backward" in schema.name:
        return False
    return True in node.args[5:6] and node.args[3] is not None


def draws(node: fx.Node) -> bool:
    """Whether the operation draws random numbers: it is tagged so. Attention is too, for a dropout it need not have."""
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    rates = [
        node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for index, argument in enumerate(node.target._schema.arguments)  # type: ignore[union-attr]  # an operation
        if argument.name == "dropout_p"
    ]
    return rates != [0.0]


def make_picklable(graph: fx.GraphModule) -> None:
    """Forgets the class of ``make_fx``'s tracer and its symbols of sizes, which another process cannot load."""
    graph._tracer_cls = None
    vars(graph).pop("shape_env", None)
    graph.meta.clear()


def sizes_of(node: fx.Node) -> tuple[list[int], list[int], list[int]]:
    """Shape and strides of the node's result when it was traced, and the dimensions whose sizes were symbols."""
    result = result_of(node)
    symbols = [dimension for dimension, size in enumerate(result.shape) if not isinstance(size, int)]
    return _hints(result.shape), _hints(result.stride()), symbols


def _hints(sizes: Any) -> list[int]:
    return [size if isinstance(size, int) else int(size.node.hint) for size in sizes]


def is_product(node: fx.Node) -> bool:
    """Whether it is a product of matrices or an attention, or one of the results of the latter."""
    if node.target is operator.getitem:
        return is_product(node.args[0])  # type: ignore[arg-type]  # the node of which it is an item
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith(PRODUCTS)
