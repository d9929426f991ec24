"""The random numbers of a traced function, made its inputs: drawn outside, in the order of the policy itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sb3_ppo_ext.engines.errors import CompileError

aten = torch.ops.aten


class Noise(NamedTuple):
    """One draw of random numbers: "normal", "uniform" or "exponential", and the shape."""

    kind: str
    shape: tuple[int, ...]

    def draw(self) -> Tensor:
        """The numbers, from torch's generator, to the bit those of ``Normal``, ``Bernoulli`` and ``Categorical``."""
        return self.fill(torch.empty(self.shape))

    def fill(self, numbers: Tensor) -> Tensor:
        """The numbers written into a tensor of this shape."""
        if self.kind == "normal":
            return numbers.normal_()
        return numbers.uniform_() if self.kind == "uniform" else numbers.exponential_()


def draws_of(traced: fx.GraphModule) -> list[Any]:
    """The operations that draw random numbers."""
    seeded = torch.Tag.nondeterministic_seeded
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    return [node for node in calls if seeded in getattr(node.target, "tags", ()) and not _without_dropout(node)]


def _without_dropout(node: Any) -> bool:
    """Attention draws for its dropout only."""
    arguments = node.target._schema.arguments
    rates = [
        node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for index, argument in enumerate(arguments)
        if argument.name == "dropout_p"
    ]
    return rates == [0.0]


def refuse_draws(traced: fx.GraphModule) -> None:
    """``CompileError`` where there is one: a graph would draw other numbers than torch's generator."""
    for node in draws_of(traced):
        raise CompileError(f"the policy draws by {node.target} while it is evaluated; a graph would draw other numbers")


def noise_as_inputs(traced: fx.GraphModule) -> list[Noise]:
    """Makes every draw of the graph an input after its others; returns them in the order of drawing."""
    graph = traced.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    drawn: list[Noise] = []
    for node in draws_of(traced):
        replace = _SAMPLERS.get(node.target)
        if replace is None or (node.target is aten.multinomial.default and node.args[1] != 1):
            raise CompileError(f"the policy draws by {node.target}, whose numbers cannot be drawn beforehand")
        kind, rewrite = replace
        sample = node.meta["val"]
        shape = node.args[0].meta["val"].shape
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(drawn)}")
        last.meta["val"] = sample.new_empty(shape, dtype=torch.float32)
        with graph.inserting_before(node):
            node.replace_all_uses_with(rewrite(graph, node, last))
        graph.erase_node(node)
        drawn.append(Noise(kind, tuple(shape)))
    graph.lint()
    traced.recompile()
    return drawn


def _normal(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    mean, std = node.args[:2]
    return graph.call_function(aten.add.Tensor, (mean, graph.call_function(aten.mul.Tensor, (std, noise))))


def _filled(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``empty.normal_(mean, std)``."""
    mean = node.args[1] if len(node.args) > 1 else 0.0
    std = node.args[2] if len(node.args) > 2 else 1.0
    return graph.call_function(aten.add.Tensor, (graph.call_function(aten.mul.Tensor, (noise, std)), mean))


def _multinomial(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    race = graph.call_function(aten.div.Tensor, (node.args[0], noise))
    return graph.call_function(aten.argmax.default, (race, -1, True))


def _bernoulli(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    below = graph.call_function(aten.lt.Tensor, (noise, node.args[0]))
    return graph.call_function(aten._to_copy.default, (below,), {"dtype": node.meta["val"].dtype})


# As torch computes them on a CPU, of one sample each.
_SAMPLERS: dict[Any, tuple[str, Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]]] = {
    aten.normal.Tensor_Tensor: ("normal", _normal),
    aten.normal_.default: ("normal", _filled),
    aten.multinomial.default: ("exponential", _multinomial),
    aten.bernoulli.default: ("uniform", _bernoulli),
}
