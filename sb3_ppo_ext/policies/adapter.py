"""The interface of a policy to the objective, and its adapter for Stable-Baselines3's policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, cast

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext.host.pytorch.distributions import check_arguments
from sb3_ppo_ext.host.pytorch.modules import without_compile
from sb3_ppo_ext.host.sb3 import evaluates_as_sb3
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import GAUSSIANS, KNOWN_DISTRIBUTIONS, ActionDistribution, parameters_of
from sb3_ppo_ext.policies.direct_forward import HooklessNetworks
from sb3_ppo_ext.process_wide import ProcessWide


class Evaluator(Protocol):
    """The interface of a policy to the loss of a minibatch, in every framework."""

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Evaluates the minibatch under the current parameters, with gradient."""
        ...


class PolicyAdapter(Evaluator, Protocol):
    """The interface of a policy to the update."""

    def distribution(self, observation: Observation) -> ActionDistribution:
        """The parameters of the action distribution [B]."""
        ...

    def values(self, observation: Observation) -> Tensor:
        """Values [B] in reward units."""
        ...


def unwrapped(policy: torch.nn.Module) -> ActorCriticPolicy:
    """The policy, also where ``torch.compile`` has wrapped it."""
    return cast(ActorCriticPolicy, without_compile(policy))


@contextmanager
def evaluation_mode(policy: torch.nn.Module) -> Iterator[None]:
    """Puts a policy in training into the evaluation mode of collecting, until the end of the block."""
    unwrapped(policy).set_training_mode(False)
    try:
        yield
    finally:
        unwrapped(policy).set_training_mode(True)


def has_known_kl(policy: torch.nn.Module) -> bool:
    """Whether the exact KL of the policy's kind of action distribution is known."""
    return isinstance(getattr(unwrapped(policy), "action_dist", None), KNOWN_DISTRIBUTIONS)


def has_mean_and_deviation(policy: torch.nn.Module) -> bool:
    """Whether the policy's actions are Gaussian, squashed or not."""
    return isinstance(getattr(unwrapped(policy), "action_dist", None), GAUSSIANS)


class SB3Adapter:
    """The adapter of Stable-Baselines3's actor-critic policies, custom ones included."""

    def __init__(self, policy: torch.nn.Module, *, with_distribution: bool) -> None:
        self.policy = unwrapped(policy)
        self.with_distribution = with_distribution
        # A custom evaluate_actions may leave another distribution in action_dist, or none.
        self.leaves_distribution = evaluates_as_sb3(self.policy)
        self._networks = HooklessNetworks(self.policy) if self.leaves_distribution else None

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Evaluates by ``evaluate_actions``; with the distribution where the adapter was made for that."""
        value, log_prob, entropy = self._evaluate_actions(minibatch.observation, minibatch.action)
        distribution = None
        if self.with_distribution:
            current = self.policy.action_dist if self.leaves_distribution else None
            distribution = parameters_of(current or self.policy.get_distribution(minibatch.observation))
        return Evaluation(log_prob, entropy, value.flatten(), distribution)

    def _evaluate_actions(self, observation: Observation, action: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self._networks is None or self._networks.hooked():
            return self.policy.evaluate_actions(observation, action)
        latent_pi, latent_vf = self._networks.latents(self.policy.extract_features(observation))
        distribution = self.policy._get_action_dist_from_latent(latent_pi)
        log_prob = distribution.log_prob(action)
        return self._networks.values(latent_vf), log_prob, distribution.entropy()

    def distribution(self, observation: Observation) -> ActionDistribution:
        """The parameters of the action distribution [B]."""
        return parameters_of(self.policy.get_distribution(observation))

    def values(self, observation: Observation) -> Tensor:
        """Values [B] in reward units."""
        return self.policy.predict_values(observation).flatten()


def unvalidated_distributions() -> ProcessWide[bool]:
    """Switches off the argument checks of ``torch.distributions``: the same bits in a tenth less time.

    A NaN is found by the checks of losses and gradients.
    """
    return _UNVALIDATED


_UNVALIDATED = ProcessWide(partial(check_arguments, False), check_arguments)
