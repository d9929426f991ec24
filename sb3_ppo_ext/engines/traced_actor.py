"""The rollout's forward pass as a pure function of tensors, to be traced and compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor

from sb3_ppo_ext.engines.substitution import carry, substituted
from sb3_ppo_ext.engines.tracing import Inputs


class ActorGraph:
    """The policy's own ``forward`` as a function of ``inputs``: actions, values, log-probabilities."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Actions [N, ...], values [N, 1] and log-probabilities [N], as ``forward`` returns them."""
        policy = self.policy
        with substituted(policy, inputs["constants"]) as assigned, exploring(policy, inputs["exploration"]):
            action, value, log_prob = policy(inputs["observation"])
        carry(assigned)
        return action, value, log_prob


@contextmanager
def exploring(policy: Any, matrices: Mapping[str, Tensor]) -> Iterator[None]:
    """gSDE's exploration matrices, which are no buffers of the policy, replaced until the end of the block."""
    distribution = policy.action_dist
    own = {name: getattr(distribution, name) for name in matrices}
    try:
        for name, matrix in matrices.items():
            setattr(distribution, name, matrix)
        yield
    finally:
        for name, matrix in own.items():
            setattr(distribution, name, matrix)


def exploration_of(policy: Any) -> dict[str, Tensor]:
    """gSDE's exploration matrices as they stand: one for all environments, and one for each."""
    distribution = policy.action_dist
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return {}
    return {name: getattr(distribution, name).detach() for name in ("exploration_mat", "exploration_matrices")}
