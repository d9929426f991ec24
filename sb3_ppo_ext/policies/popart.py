"""Value normalisation: the value head learns in running units of the return and answers in reward units.

A PopArt head (van Hasselt et al. 2016): whenever the statistics of the return move, the last layer is rescaled so that
the values it gives stay what they were. Only the first rollout of an untrained head is taken as it comes: its outputs
near 0 then mean values near the mean return, not ones many deviations off.
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

# Weight of the past per rollout: an average over about the last 100. Divided by its own sum of weights, so the first
# rollout counts in full (Adam's correction; the same device as ValueNorm in MAPPO, Yu et al. 2022).
DECAY = 0.99
SMALLEST_STD = 1e-4


class PopArtLinear(nn.Linear):
    """A linear layer of one output, ``(w x + b) std + mean``, with ``mean`` and ``std`` of the return as buffers.

    It keeps the parameters of the layer it replaces (and so the optimizer's hold on them), and its names: a state
    dict of the plain layer loads into it, with mean 0 and std 1.
    """

    mean: Tensor
    std: Tensor
    moments: Tensor  # decayed sums of weight, return, return squared

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        device = layer.weight.device
        self.register_buffer("mean", torch.zeros((), device=device))
        self.register_buffer("std", torch.ones((), device=device))
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64, device=device))
        self.trained = False  # whether the values it gives mean something already

    def forward(self, features: Tensor) -> Tensor:
        """Values in reward units [B, 1]."""
        return super().forward(features) * self.std + self.mean

    @torch.no_grad()
    def update(self, value_target: Tensor) -> None:
        """Takes the returns [B] of a rollout into the statistics; a trained head's values stay what they were."""
        target = value_target.double()
        sums = torch.stack((torch.ones_like(target[0]), target.mean(), (target**2).mean()))
        self.moments.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        weight, first, second = self.moments
        mean = first / weight
        std = (second / weight - mean**2).clamp(min=SMALLEST_STD**2).sqrt()
        if self.trained:
            self.weight.mul_(self.std / std)
            self.bias.copy_((self.bias * self.std + self.mean - mean) / std)
        self.trained = True
        self.mean.copy_(mean)
        self.std.copy_(std)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.trained = True
        for name, fresh in (("mean", 0.0), ("std", 1.0), ("moments", 0.0)):
            key = prefix + name
            if key not in state_dict:
                state_dict[key] = torch.full_like(getattr(self, name), fresh)
        super()._load_from_state_dict(state_dict, prefix, *args)


def install_popart(policy: ActorCriticPolicy) -> PopArtLinear:
    """Puts a PopArt head in the place of the policy's ``value_net``."""
    head = getattr(policy, "value_net", None)
    if isinstance(head, PopArtLinear):
        return head
    if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is None:
        raise ValueError(
            f"normalize_value=True: {type(policy).__name__}.value_net is a {type(head).__name__}; "
            "a torch.nn.Linear with one output and a bias is needed, or normalize_value=False"
        )
    policy.value_net = PopArtLinear(head)
    return policy.value_net
