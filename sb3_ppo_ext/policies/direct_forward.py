"""The networks of Stable-Baselines3's actor-critic policy without the bookkeeping of ``nn.Module.__call__``.

The same operations on the same tensors in the same order, so the same bits and the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch.modules import hook_tables, parameter_table, shared_hook_tables
from sb3_ppo_ext.host.sb3 import has_separate_towers

Layer = Callable[[Tensor], Tensor]


class HooklessNetworks:
    """The networks between a policy's features and its action distribution or value, as functions.

    Modules that are replaced later are not seen; parameters are.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._value = as_functions(policy.value_net)
        self._towers: tuple[list[Layer], list[Layer]] | None = None
        extractor = policy.mlp_extractor
        if has_separate_towers(extractor):
            self._towers = as_functions(extractor.policy_net), as_functions(extractor.value_net)
        self._hooks = [*shared_hook_tables(), *(table for module in policy.modules() for table in hook_tables(module))]

    def hooked(self) -> bool:
        """Whether a hook is registered: the modules are to be called then."""
        return any(self._hooks)

    def latents(self, features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The latent tensors of actor and critic, from their features."""
        if self._towers is not None:
            actor, critic = features if isinstance(features, tuple) else (features, features)
            return apply_layers(self._towers[0], actor), apply_layers(self._towers[1], critic)
        extractor = self.policy.mlp_extractor
        if isinstance(features, tuple):
            return extractor.forward_actor(features[0]), extractor.forward_critic(features[1])
        actor, critic = extractor(features)
        return actor, critic

    def values(self, latent: Tensor) -> Tensor:
        """The values [B, 1] of the critic's latent."""
        return apply_layers(self._value, latent)


def as_functions(module: nn.Module) -> list[Layer]:
    """The module as functions to be applied in turn, which read their parameters at each call."""
    if "forward" in vars(module):
        return [module]
    if type(module) is nn.Sequential:
        return [function for layer in module for function in as_functions(layer)]
    if type(module) is nn.Linear:
        parameters = parameter_table(module)
        return [lambda x: nn.functional.linear(x, parameters["weight"], parameters["bias"])]
    if type(module) is nn.Tanh:
        return [torch.tanh]
    return [module]


def apply_layers(layers: list[Layer], x: Tensor) -> Tensor:
    """The output of the layers."""
    for layer in layers:
        x = layer(x)
    return x
