"""The rollout's forward pass as a pure function of tensors, to be traced and compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.substitution import substituted, write_assigned
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.policies.exploration import exploration_replaced


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
