"""Actors of a rollout's collection: they give action, value and log-probability of a batch of observations.

The eager actor has the bits and the random draws of the policy's ``forward``. Where that is Stable-Baselines3's, the
same operations are called without the checks and the calls of modules around them; any other policy is called whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext.host.sb3 import forwards_as_sb3
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.policies.direct_forward import HooklessNetworks
from sb3_ppo_ext.policies.side_effects import without_trace


class Acted(NamedTuple):
    """The actions for a batch of observations; the arrays and tensors are new each time: callbacks may keep them."""

    actions: np.ndarray  # [N, ...], for the environment
    sampled: Tensor  # the same numbers on the policy's device
    values: Tensor  # [N, 1]
    log_probs: Tensor  # [N]


class Actor(Protocol):
    """The interface to what acts; a new actor is made for every rollout, after ``reset_noise``."""

    def act(self, observation: Observation) -> Acted:
        """Acts on observations [N, ...] of the policy's device, without gradient.

        For a NaN it raises the error of the policy's distribution.
        """
        ...

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """The value [1] of each observation, where each is a batch of one; without gradient."""
        ...

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step. They enter no return where an episode has ended."""
        ...


class EagerActor:
    """The policy itself. Values are computed for each observation alone, because a batch may round differently."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._networks = HooklessNetworks(policy) if forwards_as_sb3(policy) else None

    def act(self, observation: Observation) -> Acted:
        """The results of ``policy(observation)``."""
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
        except (RuntimeError, ValueError):  # a sampler met a NaN; the distribution's error names the parameter
            check_distribution(self.policy, observation)
            raise
        refuse_nan(self.policy, observation, log_probs)
        return actions, values, log_probs

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """The values by ``predict_values``."""
        for observation in observations:
            yield predicted_values(self.policy, observation)[0]

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """The values by ``predict_values``."""
        return predicted_values(self.policy, observation)


@torch.no_grad()
def predicted_values(policy: ActorCriticPolicy, observation: Observation) -> Tensor:
    """Values [N, 1] by ``predict_values``, without gradient."""
    return policy.predict_values(observation)


def plain_forward(
    policy: ActorCriticPolicy, networks: HooklessNetworks, observation: Observation
) -> tuple[Tensor, Tensor, Tensor]:
    """The operations of ``ActorCriticPolicy.forward``; the policy's methods make features and distribution."""
    latent_pi, latent_vf = networks.latents(policy.extract_features(observation))
    values = networks.values(latent_vf)
    distribution = policy._get_action_dist_from_latent(latent_pi)
    actions = distribution.get_actions()
    log_probs = distribution.log_prob(actions)
    return actions.reshape((-1, *policy.action_space.shape)), values, log_probs  # type: ignore[misc]  # has a shape


def refuse_nan(policy: ActorCriticPolicy, observation: Observation, log_probs: Tensor) -> None:
    """Raises the error that the distribution of the observations raises when it checks its parameters, if it does."""
    if not math.isfinite(sum(log_probs.flatten().tolist())):
        check_distribution(policy, observation)


def check_distribution(policy: ActorCriticPolicy, observation: Observation) -> None:
    """Computes distribution, draw and log-probability again with their checks; no random generator moves."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_trace(policy), torch.no_grad():
        distribution = policy.get_distribution(observation)
        distribution.log_prob(distribution.get_actions())
