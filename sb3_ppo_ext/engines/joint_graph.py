"""A traced function with its gradient, taken apart into a graph of each.

What the gradient needs of the function's own computation, the first graph returns where it is a product of matrices,
and the second computes again where it is not: such operations are fused with those around them, and cost next to
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.host.pytorch.graphs import Varying, is_product, result_of, sizes_of, written_by


class Half(NamedTuple):
    """A graph, examples of its inputs, and which of their sizes may be any."""

    graph: fx.GraphModule
    inputs: list[Tensor]
    varying: Varying


def halves_of(joint: fx.GraphModule, inputs: Sequence[Tensor], varying: Varying) -> tuple[Half, Half]:
    """The function and its gradient, of a graph that returns a result and gradients along the last of its inputs.

    The first takes all inputs but the last; it returns the result and what is kept. The second takes those, what was
    kept, and the last; it returns the gradients.
    """
    nodes = list(joint.graph.nodes)
    if written := next((node.name for node in nodes for _ in written_by(node)), None):
        raise CompileError(f"its operation {written} writes to a tensor in place")
    *placeholders, direction = [node for node in nodes if node.op == "placeholder"]
    (result, *gradients) = nodes[-1].args[0]
    kept = _kept(nodes, direction, gradients)
    examples = [torch.empty_strided(*sizes_of(node)[:2], dtype=result_of(node).dtype) for node in kept]
    first, shift = len(inputs) - 1, len(kept)
    of_inputs = tuple((index, size) for index, size in varying if index < first)
    of_kept = tuple((first + index, size) for index, node in enumerate(kept) for size in sizes_of(node)[2])
    of_direction = tuple((first + shift, size) for index, size in varying if index == first)
    forward = Half(_part(joint, placeholders, [result, *kept]), list(inputs[:-1]), of_inputs)
    backward = _part(joint, [*placeholders, *kept, direction], gradients)
    return forward, Half(backward, [*inputs[:-1], *examples, inputs[-1]], of_inputs + of_kept + of_direction)


def _kept(nodes: Sequence[fx.Node], direction: fx.Node, gradients: Sequence[fx.Node]) -> list[fx.Node]:
    """The products in the function's own computation from which the gradients can be computed."""
    along = {direction}  # what depends on the direction
    for node in nodes:
        if any(argument in along for argument in node.all_input_nodes):
            along.add(node)
    needed = _ancestors(gradients, stop=set())
    edge = {argument for node in needed & along for argument in node.all_input_nodes} | set(gradients)
    products = {
        node for node in nodes if node not in along and is_product(node) and isinstance(result_of(node), Tensor)
    }
    found = _ancestors(edge - along, stop=products) & products
    return [node for node in nodes if node in found]


def _ancestors(nodes: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they are computed from, up to those in ``stop``."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node in stop else node.all_input_nodes
    return found


def _part(joint: fx.GraphModule, inputs: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph of ``results`` as a function of ``inputs``."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    wanted = _ancestors(results, stop=set(inputs))
    for node in joint.graph.nodes:
        if node in wanted and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    return fx.GraphModule(joint, graph)
