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


class PlainNetworks:
    """What lies between a policy's features and its action distribution or value, as the modules stand now."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._value = straight(policy.value_net)
        self._towers: tuple[list[Layer], list[Layer]] | None = None
        extractor = policy.mlp_extractor
        if has_separate_towers(extractor):
            self._towers = straight(extractor.policy_net), straight(extractor.value_net)
        of_modules = [table for module in policy.modules() for table in hook_tables(module)]
        self._hooks = (*of_modules, *shared_hook_tables())

    def hooked(self) -> bool:
        """Whether somebody listens to the layers; they are to be called in full then."""
        return any(self._hooks)

    def latents(self, features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of actor and critic."""
        if self._towers is not None:
            actor, critic = features if isinstance(features, tuple) else (features, features)
            return through(self._towers[0], actor), through(self._towers[1], critic)
        extractor = self.policy.mlp_extractor
        if isinstance(features, tuple):
            return extractor.forward_actor(features[0]), extractor.forward_critic(features[1])
        actor, critic = extractor(features)
        return actor, critic

    def values(self, latent: Tensor) -> Tensor:
        """[B, 1] from the critic's latent."""
        return through(self._value, latent)


def straight(module: nn.Module) -> list[Layer]:
    """The module as functions to be called one after the other, which look their parameters up each time."""
    if "forward" in vars(module):
        return [module]
    if type(module) is nn.Sequential:
        return [layer for part in module for layer in straight(part)]
    if type(module) is nn.Linear:
        parameters = parameter_table(module)
        return [lambda x: nn.functional.linear(x, parameters["weight"], parameters["bias"])]
    if type(module) is nn.Tanh:
        return [torch.tanh]
    return [module]


def through(layers: list[Layer], x: Tensor) -> Tensor:
    """The output of the layers."""
    for layer in layers:
        x = layer(x)
    return x
