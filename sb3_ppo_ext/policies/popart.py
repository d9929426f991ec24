"""Value normalisation: the value head learns in running units of the return; its values are in reward units.

In a PopArt head (van Hasselt et al. 2016) the last layer is rescaled whenever the statistics of the return move, so
that its values stay the same. The first rollout of an untrained head is the exception: its outputs near 0 then mean
values near the mean return, and not values many deviations from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

# The weight of the past per rollout: an average over about the last 100. It is divided by its sum of weights, so that
# the first rollout counts in full (Adam's correction, as in the ValueNorm of MAPPO, Yu et al. 2022).
DECAY = 0.99
SMALLEST_STD = 1e-4

STATISTICS = ("mean", "std", "moments")
METADATA = "popart"  # key in the metadata of a state dict


class PopArtLinear(nn.Linear):
    """A linear layer of one output, ``(w x + b) std + mean``, with ``mean`` and ``std`` of the return as buffers.

    It has the parameters of the layer it replaces, which the optimizer holds. Its state dict is that of the plain layer
    with the same values, ``w std`` and ``b std + mean``: policies with and without it load each other's files. The
    metadata of the dict has its own numbers, from which it continues bit for bit.
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
        self.trained = False  # whether its values have been learned

    def _plain(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and bias of the plain layer with the same values."""
        return weight * self.std, bias * self.std + self.mean

    def forward(self, features: Tensor) -> Tensor:
        """Values in reward units [B, 1], by the operations and so with the bits of the plain layer."""
        return nn.functional.linear(features, *self._plain(self.weight, self.bias))

    @torch.no_grad()
    def update(self, value_target: Tensor, average: Callable[[Tensor], Tensor] = lambda mean: mean) -> None:
        """Adds the returns [B] of a rollout to the statistics; the values of a trained head stay the same.

        ``average`` makes means over [B] those over the rows of all processes.
        """
        target = value_target.double()
        sums = average(torch.stack((torch.ones_like(target[0]), target.mean(), (target**2).mean())))
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
            exact = {name: getattr(self, name).detach().clone() for name in ("weight", "bias", *STATISTICS)}
            destination._metadata[prefix[:-1]][METADATA] = {**exact, "trained": self.trained}
        for name, tensor in zip(("weight", "bias"), self._plain(self.weight, self.bias), strict=True):
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    @torch.no_grad()
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Loads the values of ``state_dict``, and the exact numbers where its metadata has them."""
        exact = {"trained": True, **local_metadata.get(METADATA, {})}
        if old_format := prefix + "mean" in state_dict:  # statistics beside weights in units of the return
            exact |= {name: state_dict.pop(prefix + name) for name in STATISTICS}
        for name in STATISTICS:
            if name in exact:
                getattr(self, name).copy_(exact[name])
        self.trained = exact["trained"]
        if not old_format and {prefix + "weight", prefix + "bias"} <= state_dict.keys():
            self._use_units_of_the_return(state_dict, prefix, exact)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _use_units_of_the_return(self, state_dict: dict[str, Any], prefix: str, exact: dict[str, Any]) -> None:
        """Replaces the plain layer's parameters in ``state_dict`` by this layer's."""
        plain = [state_dict[prefix + name].to(self.std.device) for name in ("weight", "bias")]
        scaled = [plain[0] / self.std, (plain[1] - self.mean) / self.std]
        if "weight" in exact:  # a division does not undo a product to the last bit
            saved = [exact[name].to(self.std.device) for name in ("weight", "bias")]
            if all(map(torch.equal, self._plain(*saved), plain)):
                scaled = saved
        state_dict.update({prefix + "weight": scaled[0], prefix + "bias": scaled[1]})


def install_popart(policy: ActorCriticPolicy) -> PopArtLinear:
    """Replaces the policy's ``value_net`` by a PopArt head, unless it is one."""
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
