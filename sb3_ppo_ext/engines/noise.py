"""The random numbers of a traced function as its inputs: drawn outside, in the order in which the policy draws."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.host.pytorch.graphs import draws, result_of, set_result
from sb3_ppo_ext.host.pytorch.sampling import filled, sampler_of


class Noise(NamedTuple):
    """One draw of random numbers: "normal", "uniform" or "exponential", and the shape."""

    kind: str
    shape: tuple[int, ...]

    def draw(self) -> Tensor:
        """The numbers, from torch's generator: to the bit those of ``Normal``, ``Bernoulli`` and ``Categorical``."""
        return self.fill(torch.empty(self.shape))

    def fill(self, numbers: Tensor) -> Tensor:
        """The numbers written into a tensor of this shape."""
        return filled(numbers, self.kind)


def refuse_draws(traced: fx.GraphModule) -> None:
    """Raises ``CompileError`` where the graph draws: its numbers would not be those of torch's generator."""
    for node in filter(draws, traced.graph.nodes):
        raise CompileError(f"the policy draws by {node.target} while it is evaluated; a graph would draw other numbers")


def noise_as_inputs(traced: fx.GraphModule) -> list[Noise]:
    """Makes every draw of the graph an input after its others; returns them in the order of drawing."""
    graph = traced.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    noise: list[Noise] = []
    for node in list(filter(draws, graph.nodes)):
        sampler = sampler_of(node)
        if sampler is None:
            raise CompileError(f"the policy draws by {node.target}, whose numbers cannot be drawn beforehand")
        kind, rewrite = sampler
        shape = result_of(node.args[0]).shape
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(noise)}")
        set_result(last, result_of(node).new_empty(shape, dtype=torch.float32))
        with graph.inserting_before(node):
            node.replace_all_uses_with(rewrite(graph, node, last))
        graph.erase_node(node)
        noise.append(Noise(kind, tuple(shape)))
    graph.lint()
    traced.recompile()
    return noise
