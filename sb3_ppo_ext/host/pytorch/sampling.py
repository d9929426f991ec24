"""The draws of torch.distributions on a CPU, in ATen operations of one sample each, from numbers drawn before.

``SAMPLERS`` has for each operation the kind of numbers it draws, and what writes its result into a graph: a function of
the graph, the operation's node and the node of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sb3_ppo_ext.host.pytorch.graphs import aten, result_of

Rewrite = Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]


def _normal(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``torch.normal(mean, std)`` is mean + std * z."""
    mean, std = node.args[:2]
    return graph.call_function(aten.add.Tensor, (mean, graph.call_function(aten.mul.Tensor, (std, noise))))


def _filled(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``empty.normal_(mean, std)`` is z * std + mean."""
    mean = node.args[1] if len(node.args) > 1 else 0.0
    std = node.args[2] if len(node.args) > 2 else 1.0
    return graph.call_function(aten.add.Tensor, (graph.call_function(aten.mul.Tensor, (noise, std)), mean))


def _multinomial(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``torch.multinomial(p, 1)`` is argmax p / e, e from the exponential distribution."""
    race = graph.call_function(aten.div.Tensor, (node.args[0], noise))
    return graph.call_function(aten.argmax.default, (race, -1, True))


def _bernoulli(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``torch.bernoulli(p)`` is u < p."""
    below = graph.call_function(aten.lt.Tensor, (noise, node.args[0]))
    return graph.call_function(aten._to_copy.default, (below,), {"dtype": result_of(node).dtype})


SAMPLERS: dict[Any, tuple[str, Rewrite]] = {
    aten.normal.Tensor_Tensor: ("normal", _normal),
    aten.normal_.default: ("normal", _filled),
    aten.multinomial.default: ("exponential", _multinomial),
    aten.bernoulli.default: ("uniform", _bernoulli),
}


def sampler_of(node: fx.Node) -> tuple[str, Rewrite] | None:
    """The entry of the node's operation; None for one that is not known, and for several samples at a time."""
    if node.target is aten.multinomial.default and node.args[1] != 1:
        return None
    return SAMPLERS.get(node.target)


def filled(numbers: torch.Tensor, kind: str) -> torch.Tensor:
    """Numbers of that kind from torch's generator, written into the tensor: to the bit those the operations draw."""
    if kind == "normal":
        return numbers.normal_()
    return numbers.uniform_() if kind == "uniform" else numbers.exponential_()
