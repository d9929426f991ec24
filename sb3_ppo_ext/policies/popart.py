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

STATISTICS = ("mean", "std", "moments")
METADATA = "popart"  # of a state dict


class PopArtLinear(nn.Linear):
    """A linear layer of one output, ``(w x + b) std + mean``, with ``mean`` and ``std`` of the return as buffers.

    It keeps the parameters of the layer it replaces (and so the optimizer's hold on them). Its state dict is that of
    the plain layer with the same values, ``w std`` and ``b std + mean``: policies and models load each other's files
    with and without it. What it is made of stands in the dict's metadata, from which it continues bit for bit.
    """

    mean: Tensor
    std: Tensor
    moments: Tensor  # decayed sums of weight, return, return squared

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        device = layer.weight.device
        self.register_buffer("mean", torch.zeros((), device=device), persistent=False)
        self.register_buffer("std", torch.ones((), device=device), persistent=False)
        self.register_buffer("moments", torch.zeros(3, dtype=torch.float64, device=device), persistent=False)
        self.trained = False  # whether the values it gives mean something already

    def _plain(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the plain layer with the same values."""
        return weight * self.std, bias * self.std + self.mean

    def forward(self, features: Tensor) -> Tensor:
        """Values in reward units [B, 1]; the very operations, and so the bits, of the plain layer."""
        return nn.functional.linear(features, *self._plain(self.weight, self.bias))

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

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if hasattr(destination, "_metadata"):
            made_of = {name: getattr(self, name).detach().clone() for name in ("weight", "bias", *STATISTICS)}
            destination._metadata[prefix[:-1]][METADATA] = {**made_of, "trained": self.trained}
        for name, tensor in zip(("weight", "bias"), self._plain(self.weight, self.bias), strict=True):
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """The values of ``state_dict``, and statistics and bits too where it says what they are made of."""
        made_of = {"trained": True, **local_metadata.get(METADATA, {})}
        if first := prefix + "mean" in state_dict:  # once these stood there, beside weights in units of the return
            made_of |= {name: state_dict.pop(prefix + name) for name in STATISTICS}
        for name in STATISTICS:
            if name in made_of:
                getattr(self, name).copy_(made_of[name])
        self.trained = made_of["trained"]
        if not first and {prefix + "weight", prefix + "bias"} <= state_dict.keys():
            self._use_units_of_the_return(state_dict, prefix, made_of)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _use_units_of_the_return(self, state_dict: dict[str, Any], prefix: str, made_of: dict[str, Any]) -> None:
        """Puts the layer's own parameters in the place of the plain layer's."""
        plain = [state_dict[prefix + name].to(self.std.device) for name in ("weight", "bias")]
        own = [plain[0] / self.std, (plain[1] - self.mean) / self.std]
        if "weight" in made_of:  # to divide is not to undo a product to the last bit
            exact = [made_of[name].to(self.std.device) for name in ("weight", "bias")]
            if all(torch.equal(one, other) for one, other in zip(self._plain(*exact), plain, strict=True)):
                own = exact
        state_dict.update({prefix + "weight": own[0], prefix + "bias": own[1]})


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
