"""The rollout's forward pass as a pure function of tensors, to be traced and compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor

from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs


class ActorGraph:
    """The policy's own ``forward`` as a function of ``inputs``: actions, values, log-probabilities."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Actions [N, ...], values [N, 1] and log-probabilities [N], as ``forward`` returns them."""
        policy = self.policy
        with substituted(policy, inputs["constants"]) as assigned, exploration_replaced(policy, inputs["exploration"]):
            action, value, log_prob = policy(inputs["observation"])
        write_assigned(assigned)
        return action, value, log_prob


@contextmanager
def exploration_replaced(policy: Any, matrices: Mapping[str, Tensor]) -> Iterator[None]:
    """Replaces gSDE's exploration matrices, which are no buffers of the policy, until the end of the block."""
    distribution = policy.action_dist
    before = {name: getattr(distribution, name) for name in matrices}
    try:
        for name, matrix in matrices.items():
            setattr(distribution, name, matrix)
        yield
    finally:
        for name, matrix in before.items():
            setattr(distribution, name, matrix)


def exploration_of(policy: Any) -> dict[str, Tensor]:
    """gSDE's exploration matrices: the one that all environments share, and those of each environment."""
    distribution = policy.action_dist
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return {}
    return {name: getattr(distribution, name).detach() for name in ("exploration_mat", "exploration_matrices")}
