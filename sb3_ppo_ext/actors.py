"""Who acts while a rollout is collected: action, value and log-probability of a batch of observations.

The eager actor is the policy's own ``forward``, to the last bit and with the same draws from torch's generator. For
policies that keep Stable-Baselines3's ``forward`` the same operations are called without what surrounds them; any other
policy is called as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn.modules import module as global_hooks

from sb3_ppo_ext.minibatches import Observation
from sb3_ppo_ext.policies import unvalidated_distributions

Layer = Callable[[Tensor], Tensor]


class Actor(Protocol):
    """What the collection of a rollout needs; one is made for every rollout, after ``reset_noise``."""

    def act(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [N, ...], values [N, 1] and log-probabilities [N] for observations [N, ...] on the policy's device.

        Without gradient, and in tensors of their own each time: callbacks may keep them. Where a number is NaN it
        raises what the policy's distribution would.
        """
        ...

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """The value [1] of each observation, which come as batches of one; without gradient."""
        ...


class EagerActor:
    """The policy itself; one value at a time, because a batch of them may round differently."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._forward = PlainForward(policy) if forwards_as_sb3(policy) else None

    def act(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """As ``policy(observation)``."""
        if self._forward is None or self._forward.hooked():
            with torch.no_grad():
                actions, values, log_probs = self.policy(observation)
            return actions, values, log_probs
        try:
            with torch.no_grad(), unvalidated_distributions():
                actions, values, log_probs = self._forward(observation)
        except (RuntimeError, ValueError):  # of a sampler that met a NaN: the distribution says which
            check_distribution(self.policy, observation)
            raise
        refuse_nan(self.policy, observation, log_probs)
        return actions, values, log_probs

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """By ``predict_values``."""
        for observation in observations:
            with torch.no_grad():
                value: Tensor = self.policy.predict_values(observation)[0]
            yield value


def forwards_as_sb3(policy: nn.Module) -> bool:
    """Whether calling the policy is Stable-Baselines3's own ``forward``; not so where ``torch.compile`` wrapped it."""
    return type(policy).forward is ActorCriticPolicy.forward and "forward" not in vars(policy)


class PlainForward:
    """``ActorCriticPolicy.forward`` on the same tensors, without the bookkeeping of ``nn.Module.__call__``.

    The policy's own features, layers of unknown kind and distribution are asked as ever.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.value = straight(policy.value_net)
        extractor = policy.mlp_extractor
        self.towers: tuple[list[Layer], list[Layer]] | None = None
        if type(extractor) is MlpExtractor and "forward" not in vars(extractor):
            self.towers = straight(extractor.policy_net), straight(extractor.value_net)
        of_modules = [hooks for one in policy.modules() for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._hooks = (*of_modules, global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks)

    def hooked(self) -> bool:
        """Whether somebody listens to the layers; they are to be called in full then."""
        return any(self._hooks)

    def __call__(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities."""
        policy = self.policy
        latent_pi, latent_vf = self._latents(policy.extract_features(observation))
        values = through(self.value, latent_vf)
        distribution = policy._get_action_dist_from_latent(latent_pi)
        actions = sampled(distribution)
        log_probs = distribution.log_prob(actions)
        return actions.reshape((-1, *policy.action_space.shape)), values, log_probs  # type: ignore[misc]  # has a shape

    def _latents(self, features: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shared = self.policy.share_features_extractor
        if self.towers is not None:
            pi_features, vf_features = (features, features) if shared else features
            return through(self.towers[0], pi_features), through(self.towers[1], vf_features)  # type: ignore[arg-type]  # tensors
        extractor = self.policy.mlp_extractor
        if shared:
            latent_pi, latent_vf = extractor(features)
            return latent_pi, latent_vf
        return extractor.forward_actor(features[0]), extractor.forward_critic(features[1])


def straight(module: nn.Module) -> list[Layer]:
    """The module as functions to be called one after the other, which look their parameters up each time."""
    if "forward" in vars(module):
        return [module]
    if type(module) is nn.Sequential:
        return [layer for part in module for layer in straight(part)]
    if type(module) is nn.Linear:
        parameters = module._parameters
        return [lambda x: nn.functional.linear(x, parameters["weight"], parameters["bias"])]  # type: ignore[arg-type]  # set
    if type(module) is nn.Tanh:
        return [torch.tanh]
    return [module]


def through(layers: list[Layer], x: Tensor) -> Tensor:
    """The output of the layers."""
    for layer in layers:
        x = layer(x)
    return x


def sampled(distribution: Distribution) -> Tensor:
    """``distribution.get_actions()``: the same bits, from the same state of torch's generator."""
    inner = distribution.distribution
    if type(distribution) is CategoricalDistribution and type(inner) is Categorical and is_plain(inner.probs):
        # What multinomial() does for one draw, without its two searches of the probabilities for NaN.
        probs = inner.probs
        return (probs / torch.empty_like(probs).exponential_()).argmax(dim=-1)
    if type(distribution) is DiagGaussianDistribution and type(inner) is Normal and is_plain(inner.loc):
        # What rsample() does, which fills a mean and a standard deviation to draw from first.
        return inner.loc + torch.empty_like(inner.loc).normal_() * inner.scale
    return distribution.get_actions()


def is_plain(parameter: Tensor) -> bool:
    """Whether draws for it are known to be the same: shown on the CPU only."""
    return parameter.device.type == "cpu" and parameter.dim() == 2 and parameter.is_contiguous()


def refuse_nan(policy: ActorCriticPolicy, observation: Observation, log_probs: Tensor) -> None:
    """Raises what the distribution of the observations would have, had it checked its parameters; if it would."""
    if not math.isfinite(log_probs.sum().item()):
        check_distribution(policy, observation)


def check_distribution(policy: ActorCriticPolicy, observation: Observation) -> None:
    """Distribution, draw and log-probability once more, under their checks; torch's generator stays where it is."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        distribution = policy.get_distribution(observation)
        distribution.log_prob(distribution.get_actions())
