"""Who acts while a rollout is collected: action, value and log-probability of a batch of observations.

The eager actor is the policy's own ``forward``, to the last bit and with the same draws from torch's generator. For
policies that keep Stable-Baselines3's ``forward`` the same operations are called without what surrounds them; any other
policy is called as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Categorical, Normal

from sb3_ppo_ext.host.sb3 import forwards_as_sb3
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.policies.direct_forward import PlainNetworks
from sb3_ppo_ext.policies.effects import without_trace


class Acted(NamedTuple):
    """What came of a batch of observations, in tensors of its own each time: callbacks may keep them."""

    actions: np.ndarray  # [N, ...], for the environment
    sampled: Tensor  # the same where the policy is
    values: Tensor  # [N, 1]
    log_probs: Tensor  # [N]


class Actor(Protocol):
    """What the collection of a rollout needs; one is made for every rollout, after ``reset_noise``."""

    def act(self, observation: Observation) -> Acted:
        """For observations [N, ...] on the policy's device; without gradient.

        Where a number is NaN it raises what the policy's distribution would.
        """
        ...

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """The value [1] of each observation, which come as batches of one; without gradient."""
        ...

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step; where an episode has ended they enter no return."""
        ...


class EagerActor:
    """The policy itself; one value at a time, because a batch of them may round differently."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._networks = PlainNetworks(policy) if forwards_as_sb3(policy) else None

    def act(self, observation: Observation) -> Acted:
        """As ``policy(observation)``."""
        sampled, values, log_probs = self._forward(observation)
        return Acted(sampled.cpu().numpy(), sampled, values, log_probs)

    def _forward(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        if self._networks is None or self._networks.hooked():
            with torch.no_grad():
                actions, values, log_probs = self.policy(observation)
            return actions, values, log_probs
        try:
            with torch.no_grad(), unvalidated_distributions():
                actions, values, log_probs = plain_forward(self.policy, self._networks, observation)
        except (RuntimeError, ValueError):  # of a sampler that met a NaN: the distribution says which
            check_distribution(self.policy, observation)
            raise
        refuse_nan(self.policy, observation, log_probs)
        return actions, values, log_probs

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """By ``predict_values``."""
        for observation in observations:
            yield predicted_values(self.policy, observation)[0]

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """See ``Actor``."""
        return predicted_values(self.policy, observation)


@torch.no_grad()
def predicted_values(policy: ActorCriticPolicy, observation: Observation) -> Tensor:
    """Values [N, 1] by ``predict_values``, without gradient."""
    return policy.predict_values(observation)


def plain_forward(
    policy: ActorCriticPolicy, networks: PlainNetworks, observation: Observation
) -> tuple[Tensor, Tensor, Tensor]:
    """``ActorCriticPolicy.forward``; features and distribution are the policy's own business."""
    latent_pi, latent_vf = networks.latents(policy.extract_features(observation))
    values = networks.values(latent_vf)
    distribution = policy._get_action_dist_from_latent(latent_pi)
    actions = sampled(distribution)
    log_probs = distribution.log_prob(actions)
    return actions.reshape((-1, *policy.action_space.shape)), values, log_probs  # type: ignore[misc]  # has a shape


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
    """Distribution, draw and log-probability once more, under their checks; all generators stay where they are."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_trace(policy), torch.no_grad():
        distribution = policy.get_distribution(observation)
        distribution.log_prob(distribution.get_actions())
