"""A critic apart from its policy: the two gradients share nothing, and are computed beside each other on a CPU.

Each has a graph of its own and half of the threads. Matrix products of this size take longer on two threads than two
of them on a thread each, and nobody waits for anybody before the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from sb3_ppo_ext.engines.cpu.libraries import Call, load_without_gil
from sb3_ppo_ext.engines.cpu.threads import computing_with
from sb3_ppo_ext.engines.graph_cache import UNFINISHED, Graph, Graphs
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.language.engines.compiled import CompiledGradients, Gradient
from sb3_ppo_ext.language.engines.traced_tokens import TokenGradient, gradients_of, in_a_graph
from sb3_ppo_ext.language.model.causal_lm import before_response
from sb3_ppo_ext.language.training.token_update import EagerGradients
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics, value_clipped
from sb3_ppo_ext.objective.terms import KnobValues, value_term


def is_critics(name: str) -> bool:
    """Whether a parameter or buffer of that name is the critic's."""
    return name.startswith("critic.")


class PolicyHalf(TokenGradient):
    """All of ``TokenGradient`` but the value: its term has no weight, and its statistics mean nothing."""

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """See ``TokenGradient``."""
        return super().__call__({**inputs, "knobs": {**inputs["knobs"], "vf_coef": 0.0}})

    def states(self, ids: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """Without values."""
        return self.policy.lm.hidden(ids, mask, first=first), None


class ValueHalf(TokenGradient):
    """The value's part of a loss and its gradient."""

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """[3]: the weighted value loss, that loss itself, the fraction of clipped tokens; and the gradient."""
        part: Minibatch = inputs["part"]
        knobs = KnobValues(**inputs["knobs"])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        with torch.enable_grad(), in_a_graph(self.policy, {**leaves, **inputs["constants"]}, inputs["prepared"]):
            assert part.mask is not None
            tokens = self.policy.tokens(part.observation, part.action, part.mask > 0)
            ids, mask = tokens.joined()
            value = self.policy.critic.values(self.policy.lm, ids, mask, tokens.first)
            value = before_response(value, tokens.prompt.shape[1]).masked_fill(~tokens.mask, 0.0)
            unweighted = value_term(value, part, self.objective, knobs, mask=part.mask)
            loss = knobs.vf_coef * unweighted * inputs["share"]
            gradients = gradients_of(loss, leaves)
        clipped = value_clipped(value.detach(), part.mask, part, knobs)
        return (torch.stack((loss.detach(), unweighted.detach(), clipped.to(loss.dtype))), *gradients)


class HalvedGradients(CompiledGradients):
    """As ``CompiledGradients``, policy and critic beside each other."""

    def __init__(self, eager: EagerGradients, graphs: Graphs, rows: int) -> None:
        super().__init__(eager, graphs, rows)
        self.threads = max(torch.get_num_threads() // 2, 1)
        self.beside = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(self.threads,))

    def _compiled(self, inputs: Inputs) -> Gradient:
        kinds: tuple[tuple[str, type[TokenGradient]], ...] = (("tokens", PolicyHalf), ("values", ValueHalf))

        def graphs() -> list[Graph]:
            return [self._graph(f"gradient of {kind}", half, half_of(inputs, kind)) for kind, half in kinds]

        with computing_with(self.threads):
            with self.graphs.compiled_in_parallel():
                made = graphs()
            if UNFINISHED in made:
                made = graphs()
        of_policy, of_critic = (graph.call if graph.path is None else load_without_gil(graph.path) for graph in made)
        return partial(self._computed, of_policy, of_critic)

    def _computed(self, of_policy: Call, of_critic: Call, inputs: Inputs) -> list[Tensor]:
        """What ``TokenGradient`` of both would have returned."""
        with computing_with(self.threads):
            values = self.beside.submit(of_critic, tensors_of(half_of(inputs, "values")))
            row, *gradients = of_policy(tensors_of(half_of(inputs, "tokens")))
            (weighted, value_loss, clipped), *more = values.result()
        found = Statistics.of_row(row)
        found = found._replace(loss=found.loss + weighted, value_loss=value_loss, value_clipped=clipped)
        ours, theirs = iter(gradients), iter(more)
        each = [next(theirs if is_critics(name) else ours) for name in inputs["parameters"]]
        return [found.row(), *each]


def half_of(inputs: Inputs, kind: str) -> Inputs:
    """The inputs of a half, which are all but the other half's parameters and constants."""
    halved = {
        group: {name: one for name, one in inputs[group].items() if is_critics(name) == (kind == "values")}
        for group in ("parameters", "constants")
    }
    return {**inputs, **halved}
