"""A distribution of torch or TorchRL as one of Stable-Baselines3's: its own kind where there is one."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common import distributions as sb3
from torch import Tensor
from torch import distributions as torch_distributions
from torch.distributions import Categorical, Distribution, Independent, Normal, TransformedDistribution

from sb3_ppo_ext_torchrl.distributions import MultiCategorical


def sb3_distribution(distribution: Distribution) -> sb3.Distribution:
    """Stable-Baselines3's distribution with these parameters, so that its exact KL is known; else a wrapper."""
    if isinstance(distribution, MultiCategorical):
        several = sb3.MultiCategoricalDistribution(list(distribution.sizes))
        several.distribution = distribution.choices
        return several
    if isinstance(distribution, (Categorical, torch_distributions.OneHotCategorical)):
        logits = distribution.logits
        return sb3.CategoricalDistribution(logits.shape[-1]).proba_distribution(logits)
    if isinstance(distribution, Independent) and len(distribution.event_shape) == 1:
        base = distribution.base_dist
        if isinstance(base, Normal):
            gaussian = sb3.DiagGaussianDistribution(distribution.event_shape[0])
            gaussian.distribution = Normal(base.loc, base.scale)
            return gaussian
        if isinstance(base, torch_distributions.Bernoulli):
            return sb3.BernoulliDistribution(distribution.event_shape[0]).proba_distribution(base.logits)
    return TorchDistribution(distribution)


class TorchDistribution(sb3.Distribution):
    """Any other distribution whose log-probability is one number per action."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.distribution = distribution

    def log_prob(self, actions: Tensor) -> Tensor:
        """[B]."""
        log_prob: Tensor = self.distribution.log_prob(actions)  # type: ignore[union-attr]  # one, not a list
        if log_prob.ndim != 1:
            raise ValueError(
                f"{type(self.distribution).__name__} gives a log-probability of shape {tuple(log_prob.shape)} for "
                f"{len(actions)} actions; one number for each is needed, as of torch.distributions.Independent"
            )
        return log_prob

    def entropy(self) -> Tensor | None:
        """[B], or None where it has no closed form."""
        if isinstance(self.distribution, TransformedDistribution) or not _has_entropy(self.distribution):
            return None
        entropy: Tensor = self.distribution.entropy()  # type: ignore[union-attr]
        return entropy

    def sample(self) -> Tensor:
        """Actions [B, ...]."""
        with torch.no_grad():
            action: Tensor = self.distribution.sample()  # type: ignore[union-attr]
        return action

    def mode(self) -> Tensor:
        """The action that TorchRL takes for the deterministic one."""
        for name in ("deterministic_sample", "mode", "mean"):
            if hasattr(self.distribution, name):
                action: Tensor = getattr(self.distribution, name)
                return action
        raise ValueError(f"{type(self.distribution).__name__} has no mode and no mean to act deterministically by")

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        """The actor is the network."""
        raise NotImplementedError("the parameters come from the actor")

    def proba_distribution(self, *args: Any, **kwargs: Any) -> Any:
        """The actor makes the distribution."""
        raise NotImplementedError("the parameters come from the actor")

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Any:
        """The actor makes the distribution."""
        raise NotImplementedError("the parameters come from the actor")

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> Any:
        """The actor makes the distribution."""
        raise NotImplementedError("the parameters come from the actor")


def _has_entropy(distribution: Any) -> bool:
    return type(distribution).entropy is not Distribution.entropy
