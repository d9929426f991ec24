"""Acting while a rollout is collected, through the compiled forward pass of the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.engines.substitution import WrittenBuffers
from sb3_ppo_ext.engines.traced_actor import ActorGraph
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.policies.exploration import exploration_of
from sb3_ppo_ext.rollout.actors import Acted, EagerActor, predicted_values, refuse_nan


class CompiledActor:
    """An ``Actor`` that equals the policy's ``forward`` up to rounding, with the same draws from torch's generator."""

    def __init__(self, policy: ActorCriticPolicy, graphs: Graphs, observation: Observation) -> None:
        """The actor for batches of the size of ``observation``."""
        self.policy = policy
        inputs = acting_inputs(policy, observation)
        with unvalidated_distributions():
            graph = graphs.get("acting", ActorGraph(policy), inputs, policy, draws=True, writes=True)
        self._call, self._noise = graph.call, graph.noise
        self._written = WrittenBuffers(policy, graph.written)
        self.writes_to = list(graph.written)  # the policy's buffers, by name
        # A policy that writes to its buffers would count the padding of a batch too.
        self._terminal_values = EagerActor(policy).terminal_values if graph.written else self._values_of
        self._constants = list(inputs["constants"].values())
        self._keys = keys_of(observation)
        self._more_than_one = bool(self._keys or inputs["exploration"])  # besides constants and noise
        self._rows = len(trees.tree_leaves(observation)[0])
        self._unused_noise = [torch.ones(noise.shape) for noise in self._noise]
        self._drawn = [torch.empty(noise.shape) for noise in self._noise]  # no result of the graph lies in them

    def act(self, observation: Observation) -> Acted:
        """Actions, values and log-probabilities of observations [N, ...]."""
        for noise, numbers in zip(self._noise, self._drawn, strict=True):
            noise.fill(numbers)
        sampled, values, log_probs = self._run(observation, self._drawn)
        refuse_nan(self.policy, observation, log_probs)
        return Acted(sampled.numpy(), sampled, values, log_probs)

    def _run(self, observation: Observation, noise: list[Tensor]) -> list[Tensor]:
        self._written.restore()
        variable: Any = (observation,)
        if self._more_than_one:
            variable = variable_inputs(self.policy, observation, self._keys)
        return self._call([*self._constants, *variable, *noise])

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """The value [1] of each observation, in batches of the number of environments; draws nothing."""
        yield from self._terminal_values(observations)

    def _values_of(self, observations: list[Observation]) -> Iterator[Tensor]:
        return values_of(observations, self._rows, lambda batch: self._run(batch, self._unused_noise)[1])

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step."""
        return predicted_values(self.policy, observation)


def acting_inputs(policy: ActorCriticPolicy, observation: Observation) -> Inputs:
    """The inputs of ``ActorGraph`` without the noise."""
    constants = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    return {
        "constants": {name: tensor.detach() for name, tensor in constants.items()},
        "exploration": exploration_of(policy),
        "observation": observation,
    }


def keys_of(observation: Observation) -> list[str]:
    """The keys of dictionary observations in their order, which those at the end of an episode need not have."""
    return list(observation) if isinstance(observation, dict) else []


def variable_inputs(policy: ActorCriticPolicy, observation: Observation, keys: list[str]) -> list[Tensor]:
    """The inputs that change from call to call, in their order; exploration is drawn anew within a rollout."""
    tensors = [observation[key] for key in keys] if isinstance(observation, dict) else [observation]
    return [*exploration_of(policy).values(), *tensors]


def values_of(observations: list[Observation], rows: int, values: Callable[[Observation], Tensor]) -> Iterator[Tensor]:
    """The value [1] of each observation [1, ...], by ``values`` of exactly ``rows`` of them at a time."""
    for start in range(0, len(observations), rows):
        batch = observations[start : start + rows]
        padded = [*batch, *[batch[0]] * (rows - len(batch))]
        yield from values(trees.tree_map(lambda *tensors: torch.cat(tensors), *padded))[: len(batch)]
