"""The gradients of a critic apart from its policy, which share nothing: two graphs at the same time on a CPU.

Each has half of the threads: matrix products of this size take longer on two threads than two of them on a thread each.
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
from sb3_ppo_ext.language.engines.traced_tokens import TokenGradient, gradients_of, traceable
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenAdapter
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics, value_clipped
from sb3_ppo_ext.objective.terms import KnobValues, Objective, value_term


class PolicyOnlyAdapter(TokenAdapter):
    """The policy without its critic: the old values stand in, and the results that depend on them are not used."""

    def states(self, tokens: Tokens, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
        """The model's states [B, L, D] before every token, and the old values [B, L]."""
        hidden = self.policy.lm.hidden(*tokens.joined(), tokens.layout)
        return tokens.response_states(hidden), minibatch.state_value.masked_fill(~tokens.mask, 0.0)


class PolicyGradient(TokenGradient):
    """``TokenGradient`` without the value: its term has no weight, and its statistics mean nothing."""

    def __init__(self, adapter: TokenAdapter, objective: Objective) -> None:
        only = PolicyOnlyAdapter(adapter.policy, adapter.entropy_grad, adapter.with_reference)
        super().__init__(only, objective)

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The row of the statistics, and the gradient parameter by parameter."""
        return super().__call__({**inputs, "knobs": {**inputs["knobs"], "vf_coef": 0.0}})


class ValueGradient(TokenGradient):
    """The value's term of a loss, and its gradient."""

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """[3]: the weighted value loss, that loss itself, the fraction of clipped tokens; and the gradient."""
        rows, policy, knobs = inputs["rows"], self.adapter.policy, KnobValues(**inputs["knobs"])
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs["parameters"].items()}
        with torch.enable_grad(), traceable(policy, {**leaves, **inputs["constants"]}, inputs["prepared"]):
            tokens = policy.tokens(rows.observation, rows.action, rows.mask > 0)
            value = policy.values(tokens)
            unweighted = value_term(value, rows, self.objective, knobs, mask=rows.mask)
            loss = knobs.vf_coef * unweighted * inputs["share"]
            gradients = gradients_of(loss, leaves)
        clipped = value_clipped(value.detach(), rows.mask, rows, knobs)
        return (torch.stack((loss.detach(), unweighted.detach(), clipped.to(loss.dtype))), *gradients)


class ConcurrentGradients(CompiledGradients):
    """Gradients of policy and critic by a graph each, at the same time."""

    def __init__(self, eager: EagerGradients, graphs: Graphs, rows: int, branches: int = 1) -> None:
        super().__init__(eager, graphs, rows, branches)
        self.threads = max(torch.get_num_threads() // 2, 1)
        self.executor = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(self.threads,))

    def _compiled(self, inputs: Inputs) -> Gradient:
        update = self.update

        def graphs() -> list[Graph]:
            return [
                self._graph(
                    f"gradient of {kind}",
                    function(update.adapter, update.objective),
                    inputs_of(inputs, kind == "values"),
                )
                for kind, function in (("tokens", PolicyGradient), ("values", ValueGradient))
            ]

        with computing_with(self.threads):
            with self.graphs.compiled_in_parallel():
                made = graphs()
            if UNFINISHED in made:
                made = graphs()
        of_policy, of_critic = (graph.call if graph.path is None else load_without_gil(graph.path) for graph in made)
        return partial(self._computed, of_policy, of_critic)

    def _computed(self, of_policy: Call, of_critic: Call, inputs: Inputs) -> list[Tensor]:
        """The results of ``TokenGradient``, put together from those of both."""
        with computing_with(self.threads):
            values = self.executor.submit(of_critic, tensors_of(inputs_of(inputs, critic=True)))
            row, *gradients = of_policy(tensors_of(inputs_of(inputs, critic=False)))
            (weighted, value_loss, clipped), *value_gradients = values.result()
        found = Statistics.of_row(row)
        found = found._replace(loss=found.loss + weighted, value_loss=value_loss, value_clipped=clipped)
        each = {False: iter(gradients), True: iter(value_gradients)}
        return [found.row(), *(next(each[is_critics(name)]) for name in inputs["parameters"])]


def is_critics(name: str) -> bool:
    """True for the name of a parameter or buffer of the critic."""
    return name.startswith("critic.")


def inputs_of(inputs: Inputs, critic: bool) -> Inputs:
    """The inputs of one of the two graphs, without the parameters and constants of the other."""
    chosen = {
        group: {name: tensor for name, tensor in inputs[group].items() if is_critics(name) == critic}
        for group in ("parameters", "constants")
    }
    return {**inputs, **chosen}
