"""What the objective needs of a policy, and the adapter that asks one of Stable-Baselines3's policies for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.distributions import Distribution

from sb3_ppo_ext.host.sb3 import evaluates_as_sb3
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import KNOWN_DISTRIBUTIONS, ActionDistribution, parameters_of
from sb3_ppo_ext.policies.direct_forward import PlainNetworks
from sb3_ppo_ext.process_wide import ProcessWide


class Evaluator(Protocol):
    """What the loss of a minibatch needs of a policy, whatever framework it comes from."""

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """The minibatch under the current parameters, with gradient."""
        ...


class PolicyAdapter(Evaluator, Protocol):
    """How the update sees a policy."""

    def distribution(self, observation: Observation) -> ActionDistribution:
        """The parameters of the action distribution [B]."""
        ...

    def values(self, observation: Observation) -> Tensor:
        """Values [B] in reward units."""
        ...


def unwrapped(policy: torch.nn.Module) -> ActorCriticPolicy:
    """The policy itself where ``torch.compile`` wrapped it."""
    return cast(ActorCriticPolicy, getattr(policy, "_orig_mod", policy))


@contextmanager
def as_collected(policy: torch.nn.Module) -> Iterator[None]:
    """The policy in evaluation mode, as it collects rollouts, until the end of the block of its training."""
    unwrapped(policy).set_training_mode(False)
    try:
        yield
    finally:
        unwrapped(policy).set_training_mode(True)


def knows_distribution(policy: torch.nn.Module) -> bool:
    """Whether the policy's action distribution is of a kind whose exact KL is known here."""
    return isinstance(getattr(unwrapped(policy), "action_dist", None), KNOWN_DISTRIBUTIONS)


class SB3Adapter:
    """Stable-Baselines3's actor-critic policies, custom ones included."""

    def __init__(self, policy: torch.nn.Module, *, with_distribution: bool) -> None:
        self.policy = unwrapped(policy)
        self.with_distribution = with_distribution
        # Its own evaluate_actions leaves the distribution it evaluated in action_dist; another's may not.
        self.leaves_distribution = evaluates_as_sb3(self.policy)
        self._networks = PlainNetworks(self.policy) if self.leaves_distribution else None

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Values, log-probabilities and entropy by ``evaluate_actions``, and the distribution if it is wanted."""
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
    """``torch.distributions`` without argument checks: same bits, a tenth less time; NaN is looked for elsewhere."""
    return _UNVALIDATED


def _without_checks() -> bool:
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    return before


_UNVALIDATED = ProcessWide(_without_checks, Distribution.set_default_validate_args)
