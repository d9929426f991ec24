"""Traced graphs (``torch.fx`` graphs of ATen operations) and what operations state about themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sb3_ppo_ext.host.pytorch.trees import tree_leaves

aten = torch.ops.aten


def aten_graph(function: Callable[..., Any], tensors: Sequence[Tensor], rules: Mapping[Any, Any]) -> fx.GraphModule:
    """``function`` of these tensors as a graph of ATen operations, its gradient and in-place writes included.

    ``make_fx`` runs it on fake tensors, which compute nothing, draw nothing and write to nothing. ``rules`` rewrite
    operations; one that returns NotImplemented leaves its operation as it is.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

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
    """Forgets the class of ``make_fx``'s tracer, which another process cannot load."""
    graph._tracer_cls = None
